#!/bin/sh
# Writes tuftool/: repositories made and signed by tuftool, which our verifier must accept.
#
#   make-tuftool.sh [TUFTOOL]     tuftool 0.17.0, as tests/interop/setup.sh installs it; needs openssl
#
# The output is frozen; the keys are thrown away. Run it again only to change what is covered: every file changes. All
# metadata expire on 2040-01-01, tests verify at the reference time 2030-01-01.
#
# simple      one RSA key for everything
# delegated   the role "product", whose key is ed25519, may sign delegated*; ECDSA for the other roles
# rotated     root 2 of 2, both keys and the online key replaced twice
#
# Target paths have no directories, because tuftool drops them from what it adds.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
tuftool=${1:-$here/../../target/interop-tools/bin/tuftool}
tuftool=$(cd "$(dirname "$tuftool")" && pwd)/${tuftool##*/}
out=$here/tuftool
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
expires=2040-01-01T00:00:00Z

quiet() { "$tuftool" --log-level error "$@" >/dev/null; }

# key NAME KIND: tuftool reads RSA keys as PEM, the others as DER.
key() {
    form=DER
    [ "$2" != rsa ] || form=PEM
    case $2 in
        rsa) set -- "$1" -algorithm RSA -pkeyopt rsa_keygen_bits:2048 ;;
        ecdsa) set -- "$1" -algorithm EC -pkeyopt ec_paramgen_curve:P-256 ;;
        ed25519) set -- "$1" -algorithm ED25519 ;;
    esac
    name=$1
    shift
    openssl genpkey -quiet "$@" 2>/dev/null | openssl pkcs8 -topk8 -nocrypt -outform "$form" -out "keys/$name"
}

# begin NAME: what follows is done in a directory of its own.
begin() {
    mkdir -p "$work/$1/keys" "$work/$1/top" "$out/$1/metadata" "$out/$1/targets"
    cd "$work/$1"
    served=$out/$1
    echo "top level of $1" >top/top.bin
}

# roles ROOT-THRESHOLD ROOT-KEYS...: a new root.json with these keys for root, and the online key for the others.
roles() {
    quiet root init root.json
    quiet root expire root.json $expires
    quiet root set-threshold root.json root "$1"
    shift
    for name; do quiet root add-key root.json -k "keys/$name" -r root; done
    for role in targets snapshot timestamp; do
        quiet root set-threshold root.json $role 1
        quiet root add-key root.json -k keys/online -r $role
    done
}

# create VERSION: a repository with the targets in top/.
create() {
    quiet create -t top -o made -k keys/online --root root.json --targets-expires $expires \
        --targets-version "$1" --snapshot-expires $expires --snapshot-version "$1" --timestamp-expires $expires \
        --timestamp-version "$1"
    publish
}

# tuftool writes a whole repository, with symbolic links for targets, and those of a delegated role without the digests by
# which clients ask for them. Nobody asks for metadata of earlier versions but roots.
publish() {
    find "$served/metadata" -type f ! -name '*.root.json' -delete
    cp made/metadata/*.json "$served/metadata/"
    for file in top/* product/*; do
        [ -e "$file" ] || continue
        digest=$(sha256sum "$file" | cut -d ' ' -f 1)
        cp "$file" "$served/targets/$digest.${file##*/}"
    done
    rm -rf made
}

simple() {
    begin simple
    key online rsa
    roles 1 online
    quiet root sign root.json -k keys/online
    create 1
}

delegated() {
    begin delegated
    key root ecdsa
    key online ecdsa
    key product ed25519
    roles 1 root
    quiet root sign root.json -k keys/root
    create 1
    mkdir product
    echo 'delegated by delegated' >product/delegated.bin
    url=file://$served/metadata
    quiet delegation --signing-role product create-role -o role -k keys/product -e $expires -v 1
    quiet delegation --signing-role targets add-role -o made -i "file://$PWD/role/metadata" -k keys/online \
        --root root.json --metadata-url "$url" -e $expires --delegated-role product -p 'delegated*' -t 1 -v 2 --sign-all \
        --snapshot-expires $expires --snapshot-version 2 --timestamp-expires $expires --timestamp-version 2
    publish
    rm -rf role
    quiet delegation --signing-role product update-delegated-targets -t product -o role -k keys/product \
        --root root.json --metadata-url "$url" -e $expires -v 2
    quiet update -o made -k keys/online --root root.json --metadata-url "$url" --role product \
        -i "file://$PWD/role/metadata" --targets-expires $expires --targets-version 3 --snapshot-expires $expires \
        --snapshot-version 3 --timestamp-expires $expires --timestamp-version 3
    publish
}

# The keys of the version before sign too.
rotated() {
    begin rotated
    for name in 1a 1b 2a 2b 3a 3b; do key root-$name rsa; done
    key online rsa
    roles 2 root-1a root-1b
    quiet root sign root.json -k keys/root-1a -k keys/root-1b
    cp root.json "$served/metadata/1.root.json"
    create 1
    for version in 2 3; do
        old=$((version - 1))
        cp root.json old.json
        key online rsa
        roles 2 root-${version}a root-${version}b
        quiet root set-version root.json $version
        quiet root sign root.json -k keys/root-${version}a -k keys/root-${version}b
        quiet root sign root.json -i -c old.json -k keys/root-${old}a -k keys/root-${old}b
        cp root.json "$served/metadata/$version.root.json"
    done
    create 2
}

rm -rf "$out"
simple
delegated
rotated
