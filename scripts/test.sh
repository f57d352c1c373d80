#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Installs what is missing, builds, runs the tests. test.sh [DIR [meson options]]
set -eu
cd "$(dirname "$0")/.."
scripts/deps.sh
scripts/build.sh "$@"
meson test -C "${1:-build}" --print-errorlogs
