# SPDX-License-Identifier: Apache-2.0
# Sourced by the command-line tests: $1 = lquant, $2 = project root. Tests are functions named as sentences; run_all calls them.
set -u
lquant=$1
root=$2
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT INT TERM
tiny=$root/models/tiny
text=$root/texts/heldout.txt
quick="--nsamples 8 --seqlen 64 -q" # enough data to run every step

fail() {
    echo "FAILED: $test: $*" >&2
    exit 1
}

# expect CODE PATTERN command...: exit code and one line on stderr that matches
expect() {
    code=$1 pattern=$2
    shift 2
    "$@" >"$tmp/stdout" 2>"$tmp/stderr"
    got=$?
    [ $got = "$code" ] || fail "exit code $got, expected $code: $* ($(tail -n 1 "$tmp/stderr"))"
    grep -qE -- "$pattern" "$tmp/stderr" || fail "no '$pattern' in: $(tail -n 1 "$tmp/stderr") ($*)"
}

ok() { "$@" >"$tmp/stdout" 2>"$tmp/stderr" || fail "exit code $?: $* ($(tail -n 1 "$tmp/stderr"))"; }
absent() { for p in "$@"; do [ ! -e "$p" ] || fail "$p exists"; done; }
digest() { (cd "$1" && find . -type f | LC_ALL=C sort | xargs sha256sum | sha256sum); }
copy_tiny() { rm -rf "$tmp/in" && cp -r "$tiny" "$tmp/in" && chmod -R u+w "$tmp/in"; }
# poke FILE OFFSET BYTES (printf escapes)
poke() { printf "$3" | dd of="$1" bs=1 seek="$2" conv=notrunc 2>/dev/null; }

run_all() {
    for test in $(grep -oE '^[a-z_0-9]+\(\) \{ *# test' "$0" | cut -d'(' -f1); do
        rm -rf "$tmp"/*
        $test
        echo "ok $test"
    done
}
