#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Installs the Debian packages lquant is built from, as far as they are missing. Arguments: further packages.
set -eu
missing=
for p in gcc g++ libc6-dev meson ninja-build pkg-config libopenblas-dev libzstd-dev libjansson-dev libpcre2-dev libutf8proc-dev \
         nettle-dev libcmocka-dev "$@"; do
    dpkg-query -W -f='${Status}\n' "$p" 2>/dev/null | grep -q '^install ok installed' || missing="$missing $p"
done
[ -n "$missing" ] || exit 0
as_root=
[ "$(id -u)" = 0 ] || as_root=sudo
echo "installing:$missing" >&2
$as_root apt-get update -qq >&2
# shellcheck disable=SC2086
DEBIAN_FRONTEND=noninteractive $as_root apt-get install -y -qq --no-install-recommends $missing >&2
