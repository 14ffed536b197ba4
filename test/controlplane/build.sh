#!/bin/sh
# Builds what the test bed's clusters run from Go modules, unless it is there, into .cache of the repository:
#   controlplane-<version of Kubernetes>                  etcd and Kubernetes
#   nodes-<version of Kubernetes>-<version of containerd> what real nodes need besides: kubelet, scheduler, containerd
#   helm-<version>                                        Helm 3 and 4, for the tests of the chart
# Takes minutes the first time.
set -eu
cd "$(dirname "$0")"

cache=$PWD/../../.cache
mkdir -p "$cache"
new=
trap 'rm -rf "$new"' EXIT
trap 'exit 1' INT TERM HUP

# version MODULE FILE prints the version that a go.mod requires.
version() {
	v=$(sed -n "s,^[[:space:]]*$1 \(v[^ ]*\).*,\1,p" "$2" | head -n 1)
	[ -n "$v" ] || { echo "$0: $2 does not require $1" >&2; exit 1; }
	echo "$v"
}

# keep FOLDER gives the new folder its name. The rename is atomic. If two builds run at the same time, the second one
# keeps the result of the first.
keep() {
	chmod 755 "$new"
	mv -T "$new" "$1" 2>/dev/null || [ -d "$1" ]
}

kubernetes=$(version k8s.io/kubernetes go.mod)
containerd=$(version github.com/containerd/containerd/v2 containerd/go.mod)
export CGO_ENABLED=0
flags="-s -w -X k8s.io/component-base/version.gitVersion=$kubernetes"

target=$cache/controlplane-$kubernetes
if [ ! -d "$target" ]; then
	echo "building Kubernetes $kubernetes (once, some minutes)"
	new=$(mktemp -d "$cache/controlplane-new.XXXXXX")
	go build -o "$new/" -ldflags "$flags" \
		go.etcd.io/etcd/server/v3 \
		k8s.io/kubernetes/cmd/kube-apiserver \
		k8s.io/kubernetes/cmd/kube-controller-manager \
		k8s.io/kubernetes/cmd/kube-proxy \
		k8s.io/kubernetes/cmd/kubectl
	mv "$new/server" "$new/etcd"
	keep "$target"
fi

target=$cache/nodes-$kubernetes-$containerd
if [ ! -d "$target" ]; then
	echo "building kubelet $kubernetes and containerd $containerd (once, some minutes)"
	new=$(mktemp -d "$cache/nodes-new.XXXXXX")
	go build -o "$new/" -ldflags "$flags" k8s.io/kubernetes/cmd/kubelet k8s.io/kubernetes/cmd/kube-scheduler
	(cd containerd && go build -o "$new/" -tags "no_btrfs no_devmapper no_zfs no_aufs" -ldflags "-s -w" \
		github.com/containerd/containerd/v2/cmd/containerd \
		github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2 \
		github.com/containerd/containerd/v2/cmd/ctr)
	keep "$target"
fi

# Helm 3 must be told which Kubernetes it knows, as the Makefile of its releases does it.
minor=$(version k8s.io/client-go helm/go.mod | cut -d. -f2)
flags="-s -w"
for package in chartutil lint/rules; do
	flags="$flags -X helm.sh/helm/v3/pkg/$package.k8sVersionMajor=1 -X helm.sh/helm/v3/pkg/$package.k8sVersionMinor=$minor"
done
for module in helm.sh/helm/v3 helm.sh/helm/v4; do
	helm=$(version $module helm/go.mod)
	target=$cache/helm-$helm
	if [ ! -d "$target" ]; then
		echo "building Helm $helm (once, some minutes)"
		new=$(mktemp -d "$cache/helm-new.XXXXXX")
		(cd helm && go build -o "$new/" -ldflags "$flags" $module/cmd/helm)
		keep "$target"
	fi
done
