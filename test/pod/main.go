// Pod is the program in the containers that the test bed itself makes on real nodes: it does nothing until it is ended
// (also as the pause program of every pod), serves what tests ask for, or asks.
package main

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"
)

const usage = `pod              wait for a signal
pod serve [TCP UDP]  answer with the client's address, as HTTP on a TCP port (8080) and as datagrams (5353)
pod get URL          print what the URL has`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	switch {
	case len(args) == 0:
		<-ctx.Done()
		return nil
	case args[0] == "serve" && len(args) == 1:
		return serveEcho(ctx, "8080", "5353")
	case args[0] == "serve" && len(args) == 3:
		return serveEcho(ctx, args[1], args[2])
	case args[0] == "get" && len(args) == 2:
		return fetchURL(ctx, args[1])
	}
	return fmt.Errorf("%s", usage)
}

func serveEcho(ctx context.Context, tcp, udp string) error {
	datagrams, err := net.ListenPacket("udp", ":"+udp)
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", ":"+tcp)
	if err != nil {
		return err
	}
	errs := make(chan error, 2)
	go func() { errs <- http.Serve(listener, newHandler()) }()
	go func() { errs <- answerDatagrams(datagrams) }()
	fmt.Println("serving")
	select {
	case err := <-errs:
		return err
	case <-ctx.Done():
		return nil
	}
}

// newHandler answers with the client's address. Path /names has the name of the pod before it. Path /bytes/N has the
// first N bytes of ChaCha8 with a seed of zeros.
func newHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		client, _, _ := net.SplitHostPort(r.RemoteAddr)
		fmt.Println("request from", client)
		io.WriteString(w, client)
	})
	mux.HandleFunc("/names", func(w http.ResponseWriter, r *http.Request) {
		name, _ := os.Hostname()
		client, _, _ := net.SplitHostPort(r.RemoteAddr)
		fmt.Fprint(w, name, " ", client)
	})
	mux.HandleFunc("/bytes/{n}", func(w http.ResponseWriter, r *http.Request) {
		n, err := strconv.ParseInt(r.PathValue("n"), 10, 64)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		io.CopyN(w, rand.NewChaCha8([32]byte{}), n)
	})
	return mux
}

// answerDatagrams answers with the client's address, and zeros after it: the answer is as long as the datagram.
func answerDatagrams(c net.PacketConn) error {
	buffer := make([]byte, 64<<10)
	for {
		n, from, err := c.ReadFrom(buffer)
		if err != nil {
			return err
		}
		if udp, ok := from.(*net.UDPAddr); ok {
			address := udp.IP.String()
			clear(buffer[copy(buffer, address):])
			c.WriteTo(buffer[:max(n, len(address))], from)
		}
	}
}

func fetchURL(ctx context.Context, url string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", url, response.Status)
	}
	_, err = io.Copy(os.Stdout, response.Body)
	return err
}
