#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# build.sh [DIR [meson options]]: configures DIR (default: build) if needed and builds it.
set -eu
cd "$(dirname "$0")/.."
dir=${1:-build}
[ $# -gt 0 ] && shift
[ -f "$dir/build.ninja" ] || meson setup "$dir" "$@" >&2
ninja -C "$dir" >&2
