#!/bin/sh
# Builds the control plane's programs (etcd, Kubernetes) from their Go modules, unless they are there, into
# .cache/controlplane-<version> of the repository. Takes minutes the first time.
set -eu
cd "$(dirname "$0")"

version=$(sed -n 's,^[[:space:]]*k8s.io/kubernetes \(v[^ ]*\).*,\1,p' go.mod | head -n 1)
[ -n "$version" ] || { echo "$0: go.mod does not require k8s.io/kubernetes" >&2; exit 1; }
cache=$PWD/../../.cache
target=$cache/controlplane-$version
[ ! -d "$target" ] || exit 0

mkdir -p "$cache"
new=$(mktemp -d "$cache/controlplane-new.XXXXXX")
trap 'rm -rf "$new"' EXIT
trap 'exit 1' INT TERM HUP
echo "building Kubernetes $version (once, some minutes)"
CGO_ENABLED=0 go build -o "$new/" -ldflags "-s -w -X k8s.io/component-base/version.gitVersion=$version" \
	go.etcd.io/etcd/server/v3 \
	k8s.io/kubernetes/cmd/kube-apiserver \
	k8s.io/kubernetes/cmd/kube-controller-manager \
	k8s.io/kubernetes/cmd/kube-proxy \
	k8s.io/kubernetes/cmd/kubectl
mv "$new/server" "$new/etcd"
chmod 755 "$new"
# The rename is atomic. If two builds run at the same time, the second one keeps the result of the first.
mv -T "$new" "$target" 2>/dev/null || [ -x "$target/etcd" ]
