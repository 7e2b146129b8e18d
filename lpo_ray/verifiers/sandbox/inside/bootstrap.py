"""The first lines of every sandboxed process: ``python -I -S -B -c <this text> NAME FD``.

FD holds a job (see ``process.start``) in marshal's format. What is written here runs before any line of the program, so
the READY that it writes first to stdout proves that the sandbox itself works: what fails before it is the sandbox's
fault, what fails after it is the program's. ``-S`` leaves out ``exit`` and ``quit``, which programs call.
"""

import _sitebuiltins
import _thread
import builtins
import marshal
import os
import resource
import sys


def limit(kind, most):  # noqa: ANN001, ANN201, D103 - text that is sent keeps small
    _, hard = resource.getrlimit(kind)
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(kind, (most, most))


def at_most(most, stack_size=_thread.stack_size):  # noqa: ANN001, ANN201, D103 - as above
    return lambda size=0: stack_size(min(size, most))


with open(int(sys.argv[2]), "rb") as file:
    job = marshal.load(file)
sys.argv[:] = ["program.py"]
for name in ("exit", "quit"):
    setattr(builtins, name, _sitebuiltins.Quitter(name, "Ctrl-D (i.e. EOF)"))
_thread.stack_size = at_most(job["memory_bytes"] // 4)  # programs ask for more than they may have, and need little
for name, code in job["modules"].items():
    module = sys.modules[name] = type(sys)(name)
    exec(code, module.__dict__)
kept = [2, *sorted(job["fds"]), 2**16]
for below, above in zip(kept, kept[1:]):  # noqa: B905, RUF007 - both are as long as they should be
    os.closerange(below + 1, above)
try:
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")  # when the machine's memory ends, this goes first
except OSError:
    pass
os.environ.clear()
os.environ.update({"HOME": "/tmp", "PATH": "/usr/bin:/bin", "OPENBLAS_NUM_THREADS": "1"})
sys.path += job["path"]
limit(resource.RLIMIT_CORE, 0)
limit(resource.RLIMIT_NOFILE, 64)
limit(resource.RLIMIT_MEMLOCK, 0)
limit(resource.RLIMIT_MSGQUEUE, 0)
limit(resource.RLIMIT_CPU, job["cpu_seconds"])
limit(resource.RLIMIT_FSIZE, job["file_bytes"])
report = []
if job["confine"] is not None:
    report = sys.modules["lpo_ray.verifiers.sandbox.inside.confine"].confine(**job["confine"])
elif job["search"]:  # bubblewrap, started by root
    sys.modules["lpo_ray.verifiers.sandbox.inside.confine"].become(job["user"], search=True)
elif job["user"] is not None:
    os.setgroups([])
    os.setresgid(job["user"], job["user"], job["user"])
    os.setresuid(job["user"], job["user"], job["user"])
for path in job["path"]:
    os.listdir(path)  # a program that would not see its packages is no fault of the program
limit(resource.RLIMIT_AS, job["memory_bytes"])
limit(resource.RLIMIT_NPROC, job["processes"])
main = sys.modules["__main__"] = type(sys)("__main__")
main.__dict__.update(ARGUMENT=job["argument"], REPORT=report)
os.write(1, job["ready"])
source, name = job["source"], job["name"]
del job, file, report
exec(compile(source, name, "exec") if isinstance(source, str) else source, main.__dict__)
