// Package kubelink is the CoreDNS plugin that links Kubernetes clusters: it runs the broker (link
// controllers and dataplane) in this process and answers DNS from the live state of the links.
//
// handler.go answers queries, setup.go connects the plugin to a Corefile, parse.go reads the stanza,
// and lifecycle.go starts, updates and stops the broker as Corefiles come and go.
package kubelink

import clog "github.com/coredns/coredns/plugin/pkg/log"

const pluginName = "kubelink"

var log = clog.NewWithPlugin(pluginName)
