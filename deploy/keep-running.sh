#!/bin/sh
# Runs a command, and again whenever it was killed or crashed.
#
# For the Procfile: honcho and foreman stop everything as soon as one process ends, so a worker that
# is killed would take all others with it. They signal the whole process group to stop; then this
# shell ends at once, and the command in its own time.
"$@"
code=$?
# Settings that cannot be: the command has said which, and trying again does not help.
[ "$code" -eq 2 ] && exit 2
while [ "$code" -ne 0 ]; do
    echo "$* ended with code $code; starting it again" >&2
    sleep 1
    "$@"
    code=$?
done
