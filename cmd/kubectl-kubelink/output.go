package main

// What commands print: objects and reports, in the forms of the flag --output.

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"
)

// checkOutput refuses other values of the flag --output than the allowed ones. An empty one is none to choose.
func checkOutput(value string, allowed ...string) error {
	if slices.Contains(allowed, value) {
		return nil
	}
	allowed = slices.DeleteFunc(slices.Clone(allowed), func(s string) bool { return s == "" })
	return usageError{fmt.Errorf("--output %q: want one of %s", value, strings.Join(allowed, ", "))}
}

// completeOutput lets the shell complete the values of the flag --output.
func completeOutput(c *cobra.Command, allowed ...string) {
	_ = c.RegisterFlagCompletionFunc("output", // the flag is there
		cobra.FixedCompletions(allowed, cobra.ShellCompDirectiveNoFileComp))
}

// printValue prints a value as yaml or json.
func printValue(out io.Writer, format string, value any) error {
	text, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		return err
	}
	if format == "yaml" {
		// YAML has no place for the control characters that JSON leaves as they are.
		if text, err = yaml.JSONToYAML([]byte(makePlain(string(text)))); err != nil {
			return err
		}
	}
	_, err = fmt.Fprintln(out, strings.TrimSpace(string(text)))
	return err
}

// printObjects prints objects for kubectl apply: as documents in yaml, as a List in json.
func printObjects(out io.Writer, format string, objects []*unstructured.Unstructured) error {
	if format == "json" {
		return printValue(out, format, map[string]any{"apiVersion": "v1", "kind": "List", "items": objects})
	}
	for _, o := range objects {
		fmt.Fprintln(out, "---")
		if err := printValue(out, format, o.Object); err != nil {
			return err
		}
	}
	return nil
}
