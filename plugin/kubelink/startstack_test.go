package kubelink

import (
	"runtime"
	"sync"
	"testing"
	"time"
)

// A goroutine starts with the stack that a query needs, also while many wait that need none.
func TestRaiseStartStack(t *testing.T) {
	raiseStartStack()
	const count = 256
	// startStack is the stack of goroutines that have just started.
	startStack := func() int {
		stop := make(chan struct{})
		var started, ended sync.WaitGroup
		defer ended.Wait()
		defer close(stop)
		started.Add(count)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for range count {
			ended.Go(func() {
				started.Done()
				<-stop
			})
		}
		started.Wait()
		runtime.ReadMemStats(&after)
		return int(after.StackInuse-before.StackInuse) / count
	}
	end := time.Now().Add(time.Minute)
	for size := 0; size < queryStack; {
		runtime.GC()
		if size = startStack(); time.Now().After(end) {
			t.Fatalf("%d bytes", size)
		}
	}
}
