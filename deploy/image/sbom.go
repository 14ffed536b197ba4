package main

// The bill of materials: programs, their Go modules, and Debian packages, with versions, checksums and licences.

import (
	"bytes"
	"context"
	"crypto/sha256"
	"debug/buildinfo"
	"debug/elf"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"slices"
	"strings"

	cdx "github.com/CycloneDX/cyclonedx-go"
	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// binary is a program of the image.
type binary struct {
	name    string
	content []byte
	info    *debug.BuildInfo
}

// readBinary reads a program that is static and built for the image's architecture.
func readBinary(file string) (b binary, err error) {
	b.name = filepath.Base(file)
	if b.content, err = os.ReadFile(file); err != nil {
		return b, err
	}
	if b.info, err = buildinfo.Read(bytes.NewReader(b.content)); err != nil {
		return b, fmt.Errorf("%s: %w", file, err)
	}
	for _, s := range b.info.Settings {
		if s.Key == "GOARCH" && s.Value != architecture {
			return b, fmt.Errorf("%s is built for %s, want %s: build it with GOARCH=%[3]s", file, s.Value, architecture)
		}
	}
	program, err := elf.NewFile(bytes.NewReader(b.content))
	if err != nil {
		return b, fmt.Errorf("%s: %w", file, err)
	}
	if slices.ContainsFunc(program.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP }) {
		return b, fmt.Errorf("%s is not static: build it with CGO_ENABLED=0", file)
	}
	return b, nil
}

// listMaterials describes the image in the JSON format of CycloneDX, without a time.
func listMaterials(
	ctx context.Context, version string, digest v1.Hash, binaries []binary, packages []*debianPackage,
) ([]byte, error) {
	image := cdx.Component{BOMRef: "image", Type: cdx.ComponentTypeContainer, Name: "kubelink", Version: version,
		PackageURL:         "pkg:oci/kubelink@" + strings.ReplaceAll(digest.String(), ":", "%3A"),
		ExternalReferences: &[]cdx.ExternalReference{{Type: cdx.ERTypeVCS, URL: source}}}
	contents := cdx.Dependency{Ref: image.BOMRef, Dependencies: &[]string{}}
	var components []cdx.Component
	var dependencies []cdx.Dependency
	modules := map[string]cdx.Component{}
	for _, b := range binaries {
		p := describeProgram(b, version)
		uses := describeModules(b.info)
		maps.Copy(modules, uses)
		refs := slices.Sorted(maps.Keys(uses))
		components = append(components, p)
		dependencies = append(dependencies, cdx.Dependency{Ref: p.BOMRef, Dependencies: &refs})
		*contents.Dependencies = append(*contents.Dependencies, p.BOMRef)
	}
	licences, err := findModuleLicences(ctx, modules)
	if err != nil {
		return nil, err
	}
	for _, ref := range slices.Sorted(maps.Keys(modules)) {
		m := modules[ref]
		if m.Licenses = licences[m.Name+"@"+m.Version]; m.Name == stdlib {
			m.Licenses = &cdx.Licenses{{License: &cdx.License{ID: stdlibLicence}}}
		}
		components = append(components, m)
	}
	for _, p := range packages {
		d := p.describePackage()
		components = append(components, d)
		*contents.Dependencies = append(*contents.Dependencies, d.BOMRef)
	}
	dependencies = append(dependencies, contents)
	bom := cdx.NewBOM()
	bom.Metadata = &cdx.Metadata{Component: &image}
	bom.Components, bom.Dependencies = &components, &dependencies
	var out bytes.Buffer
	err = cdx.NewBOMEncoder(&out, cdx.BOMFileFormatJSON).SetPretty(true).Encode(bom)
	return out.Bytes(), err
}

func describeProgram(b binary, version string) cdx.Component {
	sum := sha256.Sum256(b.content)
	return cdx.Component{BOMRef: b.name, Type: cdx.ComponentTypeApplication, Name: b.info.Path, Version: version,
		PackageURL: goPackageURL(b.info.Main.Path, version),
		Hashes:     &[]cdx.Hash{{Algorithm: cdx.HashAlgoSHA256, Value: hex.EncodeToString(sum[:])}}}
}

// stdlib is how scanners call the packages of Go itself; their licence is stdlibLicence.
const (
	stdlib        = "stdlib"
	stdlibLicence = "BSD-3-Clause"
)

// describeModules returns what a program is built of by reference.
func describeModules(info *debug.BuildInfo) map[string]cdx.Component {
	all := map[string]cdx.Component{}
	add := func(name, version, sum string) {
		url := goPackageURL(name, version)
		m := cdx.Component{BOMRef: url, Type: cdx.ComponentTypeLibrary, Name: name, Version: version, PackageURL: url}
		if hash, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(sum, "h1:")); err == nil && len(hash) > 0 {
			m.Hashes = &[]cdx.Hash{{Algorithm: cdx.HashAlgoSHA256, Value: hex.EncodeToString(hash)}}
		}
		all[m.BOMRef] = m
	}
	add(stdlib, strings.TrimPrefix(info.GoVersion, "go"), "")
	for _, m := range info.Deps {
		if m.Replace != nil {
			m = m.Replace
		}
		add(m.Path, m.Version, m.Sum)
	}
	return all
}

func goPackageURL(module, version string) string {
	return "pkg:golang/" + module + "@" + strings.ReplaceAll(version, "+", "%2B")
}

func (p *debianPackage) describePackage() cdx.Component {
	url := fmt.Sprintf("pkg:deb/debian/%s@%s?arch=%s&distro=debian-%s", p.name, strings.ReplaceAll(p.version, "+", "%2B"),
		controlField(p.control, "Architecture"), releaseNumber)
	c := cdx.Component{BOMRef: url, Type: cdx.ComponentTypeLibrary, Name: p.name, Version: p.version, PackageURL: url,
		Hashes: &[]cdx.Hash{{Algorithm: cdx.HashAlgoSHA256, Value: p.checksum}}}
	var names cdx.Licenses
	for _, name := range p.licences {
		names = append(names, cdx.LicenseChoice{License: &cdx.License{Name: name}})
	}
	if len(names) > 0 {
		c.Licenses = &names
	}
	return c
}

// licenceField is one of a copyright file in the machine-readable format of Debian.
var licenceField = regexp.MustCompile(`(?m)^License: *(\S.*?) *$`)

// commonLicence is what other copyright files say instead.
var commonLicence = regexp.MustCompile(`/usr/share/common-licenses/([A-Za-z0-9.-]*[A-Za-z0-9])`)

// findLicences returns the names of licences in the copyright file of a package, sorted.
func (p *debianPackage) findLicences(root tree) []string {
	doc := "usr/share/doc/" + p.name
	if e := root[doc]; e.target != "" {
		doc = filepath.Join("usr/share/doc", e.target)
	}
	copyright := root[doc+"/copyright"].content
	found := licenceField.FindAllSubmatch(copyright, -1)
	if len(found) == 0 {
		found = commonLicence.FindAllSubmatch(copyright, -1)
	}
	names := map[string]bool{}
	for _, m := range found {
		names[string(m[1])] = true
	}
	return slices.Sorted(maps.Keys(names))
}

// findModuleLicences returns the licences of modules, as far as the cache of go has the modules, by PATH@VERSION.
func findModuleLicences(ctx context.Context, modules map[string]cdx.Component) (map[string]*cdx.Licenses, error) {
	args := []string{"list", "-m", "-json"}
	for _, m := range modules {
		if m.Name != stdlib {
			args = append(args, m.Name+"@"+m.Version)
		}
	}
	slices.Sort(args[3:])
	out, err := exec.CommandContext(ctx, "go", args...).Output()
	if err != nil {
		return nil, fmt.Errorf("go list -m: %w", err)
	}
	all := map[string]*cdx.Licenses{}
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var m struct{ Path, Version, Dir string }
		if err := d.Decode(&m); errors.Is(err, io.EOF) {
			return all, nil
		} else if err != nil {
			return nil, err
		}
		if id := licenceOf(m.Dir); id != "" {
			all[m.Path+"@"+m.Version] = &cdx.Licenses{{License: &cdx.License{ID: id}}}
		}
	}
}

// knownLicences are the identifiers of SPDX, and a sentence of each. The first that fits counts.
var knownLicences = []struct{ id, text string }{
	{"Apache-2.0", "Apache License Version 2.0"},
	{"MPL-2.0", "Mozilla Public License Version 2.0"},
	{"MPL-2.0", "Mozilla Public License, version 2.0"},
	{"BSD-3-Clause", "may be used to endorse or promote products derived from"},
	{"BSD-2-Clause", "Redistributions in binary form must reproduce the above copyright notice"},
	{"ISC", "Permission to use, copy, modify, and/or distribute this software for any purpose"},
	{"ISC", "Permission to use, copy, modify, and distribute this software for any purpose"},
	{"CC0-1.0", "public domain with CC0 1.0"},
	{"MIT", "Permission is hereby granted, free of charge"},
}

// licenceOf returns the identifier of a module's licence; empty: it is not known.
func licenceOf(dir string) string {
	if dir == "" {
		return ""
	}
	files, _ := filepath.Glob(filepath.Join(dir, "[LlCc][IiOo][CcPp]*")) // LICENSE, LICENCE, COPYING
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		words := strings.ToLower(strings.Join(strings.Fields(string(text)), " "))
		for _, l := range knownLicences {
			if strings.Contains(words, strings.ToLower(l.text)) {
				return l.id
			}
		}
	}
	return ""
}
