// Package monitoring has the tests of the alerts: promtool checks and runs them, and each has a runbook page.
// TestMetricsOfRules in test/e2e compares their metrics with those of a broker.
package monitoring

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// alert is a rule of rules.yaml.
type alert struct {
	Alert, Expr         string
	Labels, Annotations map[string]string
}

// readYAML reads a file of this folder.
func readYAML(t *testing.T, file string, into any) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err == nil {
		err = yaml.Unmarshal(text, into)
	}
	if err != nil {
		t.Fatal(file, err)
	}
}

func readAlerts(t *testing.T) []alert {
	t.Helper()
	var file struct{ Groups []struct{ Rules []alert } }
	readYAML(t, "rules.yaml", &file)
	var all []alert
	for _, g := range file.Groups {
		all = append(all, g.Rules...)
	}
	if len(all) < 14 {
		t.Fatalf("%d alerts", len(all))
	}
	return all
}

// testFiles are the files with tests for promtool.
var testFiles = []string{"rules_test.yaml", "days_test.yaml"}

// TestRules has promtool check the rules and run their tests.
func TestRules(t *testing.T) {
	for _, args := range [][]string{{"check", "rules", "rules.yaml"}, append([]string{"test", "rules"}, testFiles...)} {
		out, err := exec.CommandContext(t.Context(), "promtool", args...).CombinedOutput()
		if err != nil {
			t.Errorf("promtool (of Debian's package prometheus, see make system) %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}

// For each alert, there is a test in which it fires, and a test in which it does not.
func TestEachAlertIsTested(t *testing.T) {
	fires, silent := map[string]bool{}, map[string]bool{}
	for _, name := range testFiles {
		var file struct {
			Tests []struct {
				Checks []struct {
					Alert  string `json:"alertname"`
					Alerts []any  `json:"exp_alerts"`
				} `json:"alert_rule_test"`
			}
		}
		readYAML(t, name, &file)
		for _, test := range file.Tests {
			for _, c := range test.Checks {
				fires[c.Alert] = fires[c.Alert] || len(c.Alerts) > 0
				silent[c.Alert] = silent[c.Alert] || len(c.Alerts) == 0
			}
		}
	}
	for _, a := range readAlerts(t) {
		if !fires[a.Alert] || !silent[a.Alert] {
			t.Errorf("%s: tested that it fires %v, that it does not %v", a.Alert, fires[a.Alert], silent[a.Alert])
		}
	}
}

// Each alert has a page with a cause, a command and a remedy, and each page has an alert.
func TestRunbooks(t *testing.T) {
	const base = "https://github.com/mandelsoft/kubelink/blob/master/deploy/monitoring/runbooks/"
	pages, err := filepath.Glob("runbooks/*.md")
	if err != nil || len(pages) == 0 {
		t.Fatal(pages, err)
	}
	for _, a := range readAlerts(t) {
		page := "runbooks/" + a.Alert + ".md"
		if url := a.Annotations["runbook_url"]; url != base+a.Alert+".md" {
			t.Errorf("%s: runbook_url %s", a.Alert, url)
		}
		if s := a.Labels["severity"]; s != "warning" && s != "critical" {
			t.Errorf("%s: severity %q", a.Alert, s)
		}
		if a.Annotations["summary"] == "" {
			t.Errorf("%s has no summary", a.Alert)
		}
		text, err := os.ReadFile(page)
		if err != nil {
			t.Error(err)
			continue
		}
		for _, part := range []string{"# " + a.Alert + "\n", "\n## Cause\n", "\n## See it\n\n```\nkubectl ", "\n## Remedy\n"} {
			if !strings.Contains(string(text), part) && !strings.Contains(string(text), strings.Replace(part, "kubectl", "dig", 1)) {
				t.Errorf("%s has no %q", page, part)
			}
		}
		pages = slices.DeleteFunc(pages, func(p string) bool { return p == page })
	}
	if len(pages) > 0 {
		t.Errorf("%q belong to no alert", pages)
	}
}
