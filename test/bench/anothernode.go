package main

// This file has the client on a node that is not the gateway's: kubelink-router leads its packets to the gateway.

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/mandelsoft/kubelink/test/fleet"
	"github.com/mandelsoft/kubelink/test/testbed"
)

// nodeDevice is the device of a node in the network of the nodes.
const nodeDevice = "eth0"

// anotherNode is a node of a cluster besides the gateway's, with a router and a client.
type anotherNode struct {
	router *fleet.Router
	client *testbed.Pod
}

// startAnotherNode adds the node to a cluster. The links are up already.
func startAnotherNode(ctx context.Context, b *fleet.Broker) (a *anotherNode, err error) {
	if err := applyManifest(ctx, b, "components/router/rbac.yaml"); err != nil {
		return nil, err
	}
	n, err := b.AddNode(ctx)
	if err != nil {
		return nil, err
	}
	a = &anotherNode{}
	if a.client, err = b.Pod(ctx, "client-"+n.Name, testbed.PodOptions{Node: n}); err != nil {
		return nil, err
	}
	if a.router, err = b.NodeRouter(ctx, n); err != nil {
		return nil, err
	}
	if err := a.router.Launch(); err != nil {
		return nil, err
	}
	return a, a.router.WaitReady(ctx)
}

// waitForRoute waits until packets for an address leave the node by a device: the router follows the gateway after
// that has started.
func (a *anotherNode) waitForRoute(ctx context.Context, to netip.Addr, device string) error {
	return testbed.Until(ctx, "route by "+device, func(ctx context.Context) error {
		route, err := a.router.Host.Run(ctx, "ip", "route", "get", to.String())
		if err == nil && !strings.Contains(route, " dev "+device+" ") {
			err = fmt.Errorf("it is %s", route)
		}
		return err
	})
}

// checkRouter returns an error when the router has ended.
func (a *anotherNode) checkRouter() error {
	select {
	case <-a.router.Process.Done():
		return errors.New("the router has ended: " + a.router.Process.Log())
	default:
		return nil
	}
}

// applyManifest applies a file of deploy.
func applyManifest(ctx context.Context, b *fleet.Broker, file string) error {
	text, err := b.Manifest(file)
	if err == nil {
		_, err = b.KubectlInput(ctx, text, "apply", "-f", "-")
	}
	return err
}
