#!/bin/sh
# Installs the TUF implementations of other people that tests/tests/interop.rs runs against ours.
#
#   setup.sh            all of them
#   setup.sh NAME...    only these: python-tuf, tuf-js, tuftool
#
# They go to the directory in FWTESTS_TOOLS (default: target/interop-tools), which is worth caching: compiling tuftool
# takes minutes, because it contains the whole client of a cloud provider. What is installed already is left alone.
set -eu

PYTHON_TUF=7.0.1
# What python-tuf signs with.
SECURESYSTEMSLIB=1.6.0
# The last one that runs on Node.js 20.
TUF_JS=4.1.0
TUFTOOL=0.17.0

here=$(cd "$(dirname "$0")" && pwd)
tools=${FWTESTS_TOOLS:-$here/../../../target/interop-tools}
mkdir -p "$tools"
tools=$(cd "$tools" && pwd)

python_tuf() {
    [ -e "$tools/python/tuf-$PYTHON_TUF" ] && return
    rm -rf "$tools/python"
    python3 -m venv "$tools/python"
    "$tools/python/bin/pip" install --quiet --disable-pip-version-check "tuf==$PYTHON_TUF" \
        "securesystemslib[crypto]==$SECURESYSTEMSLIB"
    "$tools/python/bin/python" -c 'import tuf.ngclient, cryptography'
    touch "$tools/python/tuf-$PYTHON_TUF"
}

tuf_js() {
    [ -e "$tools/node/tuf-js-$TUF_JS" ] && return
    rm -rf "$tools/node"
    mkdir -p "$tools/node"
    echo '{"private": true}' >"$tools/node/package.json"
    npm install --prefix "$tools/node" --no-audit --no-fund --silent --save-exact "tuf-js@$TUF_JS"
    touch "$tools/node/tuf-js-$TUF_JS"
}

tuftool() {
    [ -e "$tools/bin/tuftool-$TUFTOOL" ] && return
    # Optimisation and debug information would only lengthen the build. A niced build leaves the machine usable.
    CARGO_PROFILE_DEV_DEBUG=0 CARGO_TARGET_DIR="$tools/build" nice cargo install "tuftool@$TUFTOOL" \
        --locked --debug --quiet --force --root "$tools"
    rm -rf "$tools/build"
    touch "$tools/bin/tuftool-$TUFTOOL"
}

[ $# -gt 0 ] || set -- python-tuf tuf-js tuftool
for peer; do
    case $peer in
        python-tuf) python_tuf ;;
        tuf-js) tuf_js ;;
        tuftool) tuftool ;;
        *)
            echo "setup.sh: no peer is called $peer; known: python-tuf, tuf-js, tuftool" >&2
            exit 2
            ;;
    esac
done
echo "the peers are in $tools"
