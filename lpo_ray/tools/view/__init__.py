"""`lpo-ray view`: a local web page of runs, their curves and every group. Files in, plain values out; nothing of a run
is trusted, and any file may be half written, of an older version or missing.
"""
