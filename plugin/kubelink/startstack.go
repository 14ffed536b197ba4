package kubelink

// The stack that goroutines start with. CoreDNS answers each query in a goroutine of its own. The Go
// runtime lets a goroutine start with as much stack as the goroutines of the process use on average,
// which the garbage collector measures, and copies the stack whenever a goroutine needs more. The
// broker has hundreds of goroutines that wait with hardly any stack. They keep the average so low that
// each query needs two or three copies, a fifth of the time of an answer and more. So one more goroutine
// waits here, with so much stack that the average is what a query needs.

import (
	"runtime"
	"sync"
	"time"
)

const (
	// A query that is forwarded needs more than 8 KiB. Stacks are powers of two. The average must not
	// exceed 16 KiB, when queries add to it: the runtime keeps no larger stacks at hand.
	queryStack    = 10 << 10
	maxHeldStack  = 10 << 20 // for a thousand goroutines; if there are more, they start with less
	stackInterval = 10 * time.Second
)

// raiseStartStack raises the average, for as long as the process runs.
var raiseStartStack = sync.OnceFunc(func() {
	go func() {
		for {
			holdStack(min(runtime.NumGoroutine()*queryStack, maxHeldStack), stackInterval)
		}
	}()
})

// holdStack waits with at least that many bytes of stack in use. It returns a byte of them: otherwise
// the compiler would leave them out.
//
//go:noinline
func holdStack(size int, d time.Duration) byte {
	var frame [16 << 10]byte
	frame[size%len(frame)] = 1
	if size > len(frame) {
		return holdStack(size-len(frame), d) + frame[0]
	}
	time.Sleep(d)
	return frame[0]
}
