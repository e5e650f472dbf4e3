#!/bin/sh
# A vendor of tuftool: makes a repository and its next versions.
#
#   tuftool_repository.sh TUFTOOL REPO STEP
#
# create   root (2 of 2 RSA keys), top-level targets, the delegated role "router" with one target
# release  one more target of the delegated role
# refresh  new snapshot and timestamp, nothing else
#
# What is served is REPO/served; keys and work are beside it. Target paths have no directories, because tuftool drops them
# from what it adds.
set -eu

tuftool=$1
repo=$2
mkdir -p "$repo/keys"
cd "$repo"
root=$repo/root.json
# In full: tuftool makes fractions of a second of "in 30 days", which the specification does not have.
soon=$(date -u -d '+30 days' +%Y-%m-%dT%H:%M:%SZ)

quiet() { "$tuftool" --log-level error "$@" >/dev/null; }

# The versions of targets, snapshot and timestamp, all from one counter.
next() {
    version=$(($(cat version 2>/dev/null || echo 0) + 1))
    echo "$version" >version
}

versions() {
    echo --snapshot-version "$version" --timestamp-version "$version"
}

# tuftool writes a whole repository beside the old one, with symbolic links for targets, and those of a delegated role
# without the digests by which clients ask for them.
publish() {
    mkdir -p served/metadata served/targets
    for file in top/* product/*; do
        digest=$(sha256sum "$file" | cut -d ' ' -f 1)
        cp "$file" "served/targets/$digest.${file##*/}"
    done
    for file in "$1"/metadata/*.json; do
        case $file in */timestamp.json) ;; *) cp "$file" served/metadata/ ;; esac
    done
    cp "$1/metadata/timestamp.json" served/metadata/.new
    mv served/metadata/.new served/metadata/timestamp.json
    rm -rf "$1"
}

create() {
    quiet root init "$root"
    quiet root expire "$root" "$soon"
    for role in root targets snapshot timestamp; do
        quiet root set-threshold "$root" "$role" "$([ $role = root ] && echo 2 || echo 1)"
    done
    quiet root gen-rsa-key "$root" keys/root-1.pem --role root
    quiet root gen-rsa-key "$root" keys/root-2.pem --role root
    quiet root gen-rsa-key "$root" keys/online.pem --role targets --role snapshot --role timestamp
    quiet root sign "$root" -k keys/root-1.pem -k keys/root-2.pem
    openssl genpkey -quiet -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out keys/router.pem 2>/dev/null

    mkdir -p top product
    echo 'of the top-level role' >top/plain.txt
    head -c 200000 /dev/zero | tr '\0' r >product/router-1.0.0.bin
    next
    quiet create -t top -o out -k keys/online.pem --root "$root" --targets-expires "$soon" --snapshot-expires "$soon" \
        --timestamp-expires "$soon" --targets-version "$version" $(versions)
    publish out
    quiet delegation --signing-role router create-role -o role -k keys/router.pem -e "$soon" -v 1
    next
    quiet delegation --signing-role targets add-role -o out -i "file://$repo/role/metadata" -k keys/online.pem \
        --root "$root" --metadata-url "file://$repo/served/metadata" -e "$soon" --delegated-role router -p 'router-*' \
        -t 1 -v "$version" --sign-all --snapshot-expires "$soon" --timestamp-expires "$soon" $(versions)
    publish out
    rm -rf role
    deliver 2
}

# The holder of the delegated role signs new targets; the holder of the online key takes them in.
deliver() {
    quiet delegation --signing-role router update-delegated-targets -t product -o role -k keys/router.pem --root "$root" \
        --metadata-url "file://$repo/served/metadata" -e "$soon" -v "$1"
    next
    quiet update -o out -k keys/online.pem --root "$root" --metadata-url "file://$repo/served/metadata" --role router \
        -i "file://$repo/role/metadata" --targets-expires "$soon" --targets-version "$version" --snapshot-expires "$soon" \
        --timestamp-expires "$soon" $(versions)
    publish out
    rm -rf role
}

release() {
    head -c 300000 /dev/zero | tr '\0' s >product/router-1.1.0.bin
    deliver 3
}

refresh() {
    next
    quiet update -o out -k keys/online.pem --root "$root" --metadata-url "file://$repo/served/metadata" \
        --targets-expires "$soon" --targets-version "$version" --snapshot-expires "$soon" --timestamp-expires "$soon" \
        $(versions)
    publish out
}

"$3"
