package link

// What nodes other than the gateway's lack: their pods have a way to the links by a router.

import "time"

// RouterName is the name of the DaemonSet of routers.
const RouterName = "kubelink-router"

// The reasons of findings about routers.
const (
	RouterMissing  = "RouterMissing"  // none runs on a node
	RouterNotReady = "RouterNotReady" // one runs, and is not ready
)

// RouterReport says on which nodes pods have no way to the links. It is not changed later.
type RouterReport struct {
	Findings Findings
	Missing  int           // nodes without router
	NotReady int           // nodes whose router is not ready
	Unknown  error         // why it is not known; nil: it is
	Again    time.Duration // after which it has to be looked at again; 0: after a change only
}
