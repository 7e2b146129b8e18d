"""Code that runs inside the sandbox, sent there by ``process.start``. Nothing here imports more of the project than
``wire`` and ``feed``.
"""
