# Sourced, not run. The one place that makes or renews virtual environments: `ensure_venv`, then use "$VENV/bin/…".
#
# An environment is current while its stamp equals `recipe`: the lock, pyproject.toml, this file, the place of the
# tree and the interpreter. The stamp is removed first and written last, so an install that was interrupted is not
# current. Only `ensure_venv` writes, under a lock on the environment's folder.
#
# MUSTER_PYTHON  the interpreter to make the environment with (default: the first usable one)
# MUSTER_VENV    another folder than .venv; the bench's is called the same with -bench at its end, the S3 server's with -s3

# shellcheck shell=bash

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
# Which environment this script has: a name that is added to its folder, the lock it is made from, more options for pip.
use_venv() {
    VENV=${MUSTER_VENV:-$ROOT/.venv}$1 LOCK=$2 PIP_OPTIONS=("${@:3}")
    [[ $VENV == /* ]] || VENV=$PWD/$VENV
    # Compiled code goes into the environment too: a script leaves nothing else behind. It does go there, also where the
    # caller's Python keeps none: each of the hundreds of processes that the tests start would compile the whole tree
    # again, which is two thirds of what such a start costs.
    export PYTHONPYCACHEPREFIX=$VENV/cache/pycode
    unset PYTHONDONTWRITEBYTECODE
}
use_venv '' scripts/requirements.lock

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
die() { say "$*"; exit 1; }

# Does the lock cover this Python, and can it make an environment that has pip?
usable() {
    "$1" -Ic 'import sys; sys.exit(not (3, 11, 2) <= sys.version_info < (3, 15))' 2>/dev/null &&
        "$1" -Ic 'import ensurepip, venv' 2>/dev/null
}

find_python() {
    local name
    if [[ -n ${MUSTER_PYTHON:-} ]]; then
        usable "$MUSTER_PYTHON" && echo "$MUSTER_PYTHON" && return
        die "MUSTER_PYTHON=$MUSTER_PYTHON is not a Python 3.11.2 to 3.14 with venv and pip (Debian: apt-get install python3 python3-venv)"
    fi
    for name in python3 python3.14 python3.13 python3.12 python3.11 /usr/bin/python3; do
        usable "$name" && echo "$name" && return
    done
    die "no Python 3.11.2 to 3.14 with venv and pip here. Debian: apt-get install python3 python3-venv; or name one in MUSTER_PYTHON"
}

# Which installation a Python belongs to; an environment's Python answers as the one it was made with.
identity() { "$1" -Ic 'import sys; print(sys.base_prefix, *sys.version_info[:3])' 2>/dev/null; }

recipe() {
    local python
    python=$(identity "$1") || return
    { printf '%s\n' "$python" "$ROOT"; cat "$ROOT"/{"$LOCK",scripts/venv.sh,pyproject.toml}; } | sha256sum
}

venv_is_current() {
    local stamp made_with wanted
    stamp=$(cat "$VENV/stamp" 2>/dev/null) && made_with=$(recipe "$VENV/bin/python") && [[ $stamp == "$made_with" ]] || return
    [[ -z ${MUSTER_PYTHON:-} ]] || { wanted=$(recipe "$MUSTER_PYTHON") && [[ $stamp == "$wanted" ]]; }
}

# Muster is installed where the lock has what installs it.
holds_muster() { grep -q '^hatchling==' "$ROOT/$LOCK"; }

make_venv() {
    local python
    # `--clear` empties the folder: never one that somebody named by mistake.
    [[ -z ${MUSTER_VENV:-} || -e $VENV/pyvenv.cfg || -z $(ls -A "$VENV") ]] ||
        die "MUSTER_VENV=$VENV holds something that is not a virtual environment; name another folder"
    python=$(find_python) || exit
    say "making $VENV with $python ($("$python" -V)), from $LOCK; takes up to a minute"
    if ! {
        rm -f "$VENV/stamp" &&
            "$python" -m venv --clear "$VENV" &&
            "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check \
                --require-hashes --only-binary :all: "${PIP_OPTIONS[@]}" --requirement "$ROOT/$LOCK" &&
            { ! holds_muster || "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check \
                --no-deps --no-build-isolation --editable "$ROOT"; } &&
            recipe "$VENV/bin/python" >"$VENV/stamp"
    }; then
        die "could not make $VENV (the reason is above); the next run starts it afresh"
    fi
    say "$VENV is ready"
}

ensure_venv() {
    venv_is_current && return
    mkdir -p "$VENV" || die "cannot write to ${VENV%/*}"
    {
        flock --nonblock 9 || { say "waiting for another script that is making $VENV"; flock 9; }
        venv_is_current || make_venv 9<&-
    } 9<"$VENV" >&2
}
