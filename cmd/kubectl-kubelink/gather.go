package main

// The command gather: an archive for a bug report.

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/client-go/kubernetes"

	"github.com/mandelsoft/kubelink/cmd/kubectl-kubelink/gather"
	"github.com/mandelsoft/kubelink/cmd/kubectl-kubelink/survey"
)

// The end of the log of each container.
const (
	logLines = 10000
	logBytes = 16 << 20
)

func newGatherCommand(cluster *genericclioptions.ConfigFlags) *cobra.Command {
	var output string
	var timeout time.Duration
	c := &cobra.Command{
		Use:   "gather [CONTEXT...]",
		Short: "Write an archive for a bug report, without secrets",
		Long: `gather writes an archive (tar, gzip) with a folder for each context, or for the current one: the objects of
kubelink, what is in its namespace, logs, what brokers say (status), and the configuration of the cluster's DNS. Values
of secrets are cut out of all files, wherever they are, and so are texts that look like keys, tokens and passwords.
Names and addresses stay: look at it before you publish it. What cannot be read is said, and is in the file errors.txt.

The exit code is 0 if something of each cluster could be read, and 4 if nothing of one could be. Then the archive has the
other clusters.`,
		Example: `  kubectl kubelink gather c1 c2
  kubectl kubelink gather -o report.tar.gz`,
		ValidArgsFunction: completeContexts(cluster),
		RunE: func(c *cobra.Command, args []string) error {
			ctx, cancel := context.WithTimeout(c.Context(), timeout)
			defer cancel()
			if output == "" {
				output = "kubelink-" + time.Now().UTC().Format("20060102-150405") + ".tar.gz"
			}
			clusters, err := gatherClusters(cluster, args)
			if err != nil {
				return err
			}
			missing, err := writeArchive(ctx, output, clusters)
			if err != nil {
				return err
			}
			fmt.Fprintln(c.ErrOrStderr(), output, "is written")
			if c.Context().Err() != nil {
				return errors.New("interrupted: the archive has what was read until then")
			}
			return describeMissing(c.ErrOrStderr(), missing)
		},
	}
	c.Flags().StringVarP(&output, "output", "o", "", "name of the archive (default: kubelink-TIME.tar.gz)")
	c.Flags().DurationVar(&timeout, "timeout", time.Minute, "longest time of the command")
	return c
}

// describeMissing prints what could not be read. It is an error if this is all of a cluster.
func describeMissing(out io.Writer, missing []gather.Missing) error {
	var unanswered []string
	for _, m := range missing {
		if m.All {
			unanswered = append(unanswered, fmt.Sprintf("nothing of context %s could be read: %s", m.Cluster, m.Problems[0]))
			continue
		}
		for _, p := range m.Problems {
			fmt.Fprintf(out, "%s: not read: %s\n", m.Cluster, p)
		}
	}
	if len(unanswered) == 0 {
		return nil
	}
	return &exitError{exitUnanswered, strings.Join(unanswered, "; ") + "; errors.txt in the archive has the rest"}
}

// gatherClusters connects to contexts; none: the current one.
func gatherClusters(cluster *genericclioptions.ConfigFlags, contexts []string) (all []*gather.Cluster, err error) {
	if len(contexts) == 0 {
		config, err := cluster.ToRawKubeConfigLoader().RawConfig()
		if err != nil {
			return nil, err
		}
		if contexts = []string{config.CurrentContext}; *cluster.Context != "" {
			contexts = []string{*cluster.Context}
		}
	}
	for _, name := range contexts {
		config, err := configOf(cluster, name)
		if err != nil {
			return nil, fmt.Errorf("context %s: %w", name, err)
		}
		api, err := newClient(config)
		if err != nil {
			return nil, fmt.Errorf("context %s: %w", name, err)
		}
		pods, err := kubernetes.NewForConfig(config)
		if err != nil {
			return nil, fmt.Errorf("context %s: %w", name, err)
		}
		all = append(all, &gather.Cluster{Name: name, Namespace: *cluster.Namespace, Client: api,
			Logs: func(ctx context.Context, pod *corev1.Pod, container string, previous bool) ([]byte, error) {
				lines, limit := int64(logLines), int64(logBytes)
				return pods.CoreV1().Pods(pod.Namespace).GetLogs(pod.Name, &corev1.PodLogOptions{
					Container: container, Previous: previous, TailLines: &lines, Timestamps: true, LimitBytes: &limit}).DoRaw(ctx)
			},
			Extra: map[string]func(context.Context) ([]byte, error){"status.json": func(ctx context.Context) ([]byte, error) {
				target := survey.Target{Context: name, Namespace: *cluster.Namespace, API: config}
				return json.MarshalIndent(look(ctx, []survey.Target{target}), "", "  ")
			}},
		})
	}
	return all, nil
}

// writeArchive writes the file. Only its owner can read it.
func writeArchive(ctx context.Context, name string, clusters []*gather.Cluster) (missing []gather.Missing, err error) {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	missing, err = gather.Write(ctx, f, clusters, time.Now())
	if closed := f.Close(); err == nil {
		err = closed
	}
	return missing, err
}
