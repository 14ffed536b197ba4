// Package kubelink is the CoreDNS plugin that links Kubernetes clusters: it runs the broker (link
// controllers and dataplane) in this process and answers DNS from the live state of the links.
//
// handler.go answers queries, setup.go connects the plugin to a Corefile, parse.go reads the stanza,
// and lifecycle.go starts, updates and stops the broker as Corefiles come and go.
package kubelink

import "github.com/mandelsoft/kubelink/broker/eventlog"

const pluginName = "kubelink"

var log = eventlog.New(pluginName)
