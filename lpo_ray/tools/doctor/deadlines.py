"""Seconds that the checks take at most."""

SMI_SECONDS = 20.0
"""nvidia-smi"""
SANDBOX_SECONDS = 30.0
"""a program in each kind of sandbox"""
IMPORT_SECONDS = 120.0
"""the stack; a cold disk reads gigabytes"""
ENGINE_SECONDS = 240.0
"""an engine, from its start to ten tokens"""
COLLECTIVE_SECONDS = 60.0
"""both ranks: to import torch, meet and add up"""
GRACE = 5.0
"""beyond a rank's own deadline, so that its account of what was late still arrives"""
OUTER = 10.0
"""beyond the deadline of the process that a check runs, so that the process's own account arrives"""
