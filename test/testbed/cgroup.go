package testbed

// This file keeps the control groups of containers below one folder per test bed. Control groups are the one thing of
// real nodes that belongs to no namespace. The test bed removes them in Close, and the outer process removes what
// killed test beds have left, at its start and its end.

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	cgroupRoot   = "/sys/fs/cgroup"
	cgroupPrefix = "kubelink-testbed-" // before the id of the test bed's init process
)

// cgroupWeights are the shares of the processor, in both versions of control groups. A group counts as one process by
// default, but these are all pods of several machines. Their control planes are processes outside of the group.
var cgroupWeights = map[string]string{"cpu.shares": "65536", "cpu.weight": "6400"}

// cgroupName is the folder of this test bed in every hierarchy.
func cgroupName() string { return cgroupPrefix + os.Getenv(hostPIDVar) }

// cgroup is the folder of the node's pods.
func (n *Node) cgroup() string { return "/" + cgroupName() + "/" + n.Name }

// cgroupHierarchies returns the folders that control groups begin at: one for all in version 2, else one for each
// controller.
func cgroupHierarchies() (all []string) {
	var s unix.Statfs_t
	if unix.Statfs(cgroupRoot, &s) == nil && s.Type == unix.CGROUP2_SUPER_MAGIC {
		return []string{cgroupRoot}
	}
	entries, _ := os.ReadDir(cgroupRoot)
	for _, e := range entries {
		if e.IsDir() { // links name controllers that share a hierarchy
			all = append(all, filepath.Join(cgroupRoot, e.Name()))
		}
	}
	return all
}

// makeCgroups makes the folders of the test bed. The lock tells other test beds that this one lives.
func (b *Testbed) makeCgroups() error {
	for _, root := range cgroupHierarchies() {
		path := filepath.Join(root, cgroupName())
		if err := os.MkdirAll(path, 0o755); err != nil {
			return fmt.Errorf("control groups: %w", err)
		}
		dir, err := os.Open(path)
		if err == nil {
			b.internet.onClose(dir)
			err = unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		}
		if err != nil {
			return fmt.Errorf("lock control groups: %w", err)
		}
		for name, value := range cgroupWeights {
			file := filepath.Join(path, name)
			if _, err := os.Stat(file); err != nil {
				continue // of the other version, or of another controller
			}
			if err := os.WriteFile(file, []byte(value), 0o644); err != nil {
				return fmt.Errorf("control groups: %w", err)
			}
		}
	}
	return nil
}

// makeCgroups makes the folders in which kubelet makes those of pods.
func (n *Node) makeCgroups() error {
	for _, root := range cgroupHierarchies() {
		if err := os.MkdirAll(filepath.Join(root, n.cgroup()), 0o755); err != nil {
			return fmt.Errorf("%s: control groups: %w", n.Name, err)
		}
	}
	return nil
}

// sweepCgroups removes the folders of test beds that are gone.
func sweepCgroups() {
	for _, root := range cgroupHierarchies() {
		left, _ := filepath.Glob(filepath.Join(root, cgroupPrefix+"*"))
		for _, path := range left {
			dir, err := os.Open(path)
			if err == nil && unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
				removeCgroup(path)
			}
			dir.Close()
		}
	}
}

// removeCgroups removes the folder of this test bed. It has no processes any more.
func removeCgroups() {
	for _, root := range cgroupHierarchies() {
		removeCgroup(filepath.Join(root, cgroupName()))
	}
}

func removeCgroup(path string) {
	var dirs []string
	filepath.WalkDir(path, func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.IsDir() {
			dirs = append(dirs, path)
		}
		return nil
	})
	for _, dir := range slices.Backward(dirs) {
		unix.Rmdir(dir)
	}
}

// containerProcesses returns the processes of all containers on the node.
func (n *Node) containerProcesses() (all []int) {
	for _, root := range cgroupHierarchies() {
		filepath.WalkDir(filepath.Join(root, n.cgroup()), func(path string, e fs.DirEntry, err error) error {
			if err == nil && e.Name() == "cgroup.procs" {
				text, _ := os.ReadFile(path)
				for field := range strings.FieldsSeq(string(text)) {
					if pid, err := strconv.Atoi(field); err == nil && pid > 0 {
						all = append(all, pid)
					}
				}
			}
			return nil
		})
	}
	slices.Sort(all)
	return slices.Compact(all)
}
