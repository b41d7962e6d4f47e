"""Runs commands one after the other where no file can grow beyond a limit, as on a disk that is full.

Each runs in a process forked from this one, so that libraries are imported once. Reads from stdin a JSON list of
[module, arguments, largest file in bytes]; writes for each a JSON line [exit status, what it printed].
"""

import json
import os
import resource
import runpy
import signal
import sys
import traceback


def main() -> None:
    commands = json.load(sys.stdin)
    for module in ("jax", "flax.nnx", "orbax.checkpoint", "PIL.Image", "cv2"):  # the slow ones
        __import__(module)
    for module, arguments, limit in commands:
        print(json.dumps(run(module, arguments, limit)), flush=True)


def run(module: str, arguments: list[str], limit: int) -> tuple[int, str]:
    read, write = os.pipe()
    child = os.fork()
    if not child:
        status = 70
        try:
            os.close(read)
            for stream in (1, 2):
                os.dup2(write, stream)
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # as Python does at its start
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            sys.argv = [module, *arguments]
            runpy.run_module(module, run_name="__main__", alter_sys=True)
            status = 0
        except SystemExit as leaving:
            if isinstance(leaving.code, str):
                print(leaving.code, file=sys.stderr)
            status = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    os.close(write)
    with os.fdopen(read, errors="replace") as output:
        text = output.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), text


if __name__ == "__main__":
    main()
