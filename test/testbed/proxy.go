package testbed

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// All clusters have one node network, so their API servers have one address. A kubeconfig for several clusters needs a
// way into the network of each: an HTTP proxy.

// WriteKubeconfig writes an administrator's kubeconfig with a context for each cluster, which has the cluster's name.
// It works for programs in the test bed, outside of its hosts, while the test bed is there.
func (b *Testbed) WriteKubeconfig(path string) error {
	config := clientcmdapi.NewConfig()
	for _, c := range b.Clusters {
		proxy, err := c.serveProxy()
		if err != nil {
			return fmt.Errorf("%s: proxy: %w", c.Name, err)
		}
		config.Clusters[c.Name] = &clientcmdapi.Cluster{Server: c.Config.Host, CertificateAuthorityData: c.Config.CAData,
			ProxyURL: "http://" + proxy}
		config.AuthInfos[c.Name] = &clientcmdapi.AuthInfo{ClientCertificateData: c.Config.CertData,
			ClientKeyData: c.Config.KeyData}
		config.Contexts[c.Name] = &clientcmdapi.Context{Cluster: c.Name, AuthInfo: c.Name}
	}
	config.CurrentContext = b.Clusters[0].Name
	return clientcmd.WriteToFile(*config, path)
}

// Shell returns the command line of a shell in which kubectl and kubectl kubelink reach all clusters. It is for a
// terminal outside of the test bed.
func (b *Testbed) Shell() (string, error) {
	root, err := Repository()
	if err != nil {
		return "", err
	}
	path := filepath.Join(workDir, "cluster", "kubeconfig")
	if err := b.WriteKubeconfig(path); err != nil {
		return "", err
	}
	return Enter(`--wdns="$PWD"`, "env", "KUBECONFIG="+path,
		`PATH="`+filepath.Join(root, "bin")+":"+b.binaries+`:$PATH"`, "bash"), nil
}

// serveProxy serves the method CONNECT (RFC 9110, section 9.3.6) into the cluster's network until the test bed ends,
// and returns its address.
func (c *Cluster) serveProxy() (address string, err error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	server := &http.Server{Handler: http.HandlerFunc(c.connectTo)}
	go server.Serve(listener)
	context.AfterFunc(c.testbed.ctx, func() { server.Close() })
	return listener.Addr().String(), nil
}

func (c *Cluster) connectTo(w http.ResponseWriter, r *http.Request) {
	to, err := c.ControlPlane.DialContext(r.Context(), "tcp", r.Host)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer to.Close()
	from, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer from.Close()
	fmt.Fprint(from, "HTTP/1.1 200 Connection established\r\n\r\n")
	go func(r *bufio.Reader) { io.Copy(to, r); to.Close() }(buffered.Reader)
	io.Copy(from, to)
}
