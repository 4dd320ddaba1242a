#!/bin/sh
# Runs a command, and again whenever it was killed or crashed.
#
# For the Procfile: honcho and foreman stop everything as soon as one process ends, so a worker that
# is killed would take all others with it. They signal the whole process group to stop; then this
# shell ends at once, and the command in its own time.

PATH="$PWD/.venv/bin:$PATH" # where `make install` puts the command

"$@"
code=$?
# Settings that cannot be (the command has said which), or no such command: trying again is no use.
case $code in 2 | 126 | 127) exit $code ;; esac
while [ $code -ne 0 ]; do
    echo "$* ended with code $code; starting it again" >&2
    sleep 1
    "$@"
    code=$?
done
