"""Runs one command and writes what it cost:  python -I -S launch.py RESULT.json COMMAND [ARGUMENT ...]

A child's peak resident set (ru_maxrss) starts at the size of the process that forked it, so a measuring script that has
loaded numpy would hide everything smaller than itself. This process imports next to nothing and is therefore the floor
of what can be seen (about 10 MB; it is written down as floor_kb).
"""

import os
import sys
import time

PEAK = 2  # fields of struct rusage as os.wait4 returns it: user seconds, system seconds, peak kilobytes


def main():
    result, command = sys.argv[1], sys.argv[2:]
    start = time.perf_counter()
    child = os.fork()
    if child == 0:
        try:
            os.execvp(command[0], command)
        except OSError as error:
            sys.stderr.write(f"{command[0]}: {error}\n")
            os._exit(127)
    _, status, usage = os.wait4(child, 0)
    wall = time.perf_counter() - start
    with open("/proc/self/status", encoding="ascii") as own:
        floor = next(int(line.split()[1]) for line in own if line.startswith("VmHWM:"))
    with open(result, "w", encoding="ascii") as out:
        out.write(
            f'{{"wall_s": {wall}, "user_s": {usage[0]}, "system_s": {usage[1]}, "cpu_s": {usage[0] + usage[1]},'
            f' "peak_kb": {usage[PEAK]}, "floor_kb": {floor}, "exit": {os.waitstatus_to_exitcode(status)}}}'
        )


if __name__ == "__main__":
    main()
