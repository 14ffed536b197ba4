{{/* The image of all containers. */}}
{{- define "kubelink.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Labels of every object. */}}
{{- define "kubelink.labels" -}}
app.kubernetes.io/name: kubelink
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Values.image.tag | default .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* The folders of deploy/components whose rights and properties the values choose, as a JSON list. */}}
{{- define "kubelink.components" -}}
{{- $all := list -}}
{{- with .Values -}}
{{- if eq .overlay "vxlan" }}{{ $all = append $all "vxlan" }}{{ end -}}
{{- if eq .links "wireguard" }}{{ $all = append $all "wireguard" }}{{ end -}}
{{- if eq .certificate.source "self-signed" }}{{ $all = append $all "self-signed" }}{{ end -}}
{{- if eq .certificate.source "gardener" }}{{ $all = append $all "certificate" }}{{ end -}}
{{- if .clusterDNS.configure }}{{ $all = append $all "coredns-configure" }}{{ end -}}
{{- if .clusterDNS.restart }}{{ $all = append $all "coredns-restart" }}{{ end -}}
{{- if eq .dnsPropagation "kubernetes" }}{{ $all = append $all "kubernetes-dns" }}{{ end -}}
{{- if .stateDir }}{{ $all = append $all "state-dir" }}{{ end -}}
{{- if .advertisement.enabled }}{{ $all = append $all "advertisement" }}{{ end -}}
{{- if .advertisement.tokenSecret }}{{ $all = append $all "token-secret" }}{{ end -}}
{{- if .router.enabled }}{{ $all = append $all "router" }}{{ end -}}
{{- end -}}
{{- toJson $all -}}
{{- end -}}

{{/*
The objects of a file of deploy, in the namespace of the release, with the chart's labels. One source for the chart and
for kustomize: their rights cannot differ. Arguments: root, file, and kinds (empty: all).
*/}}
{{- define "kubelink.objects" -}}
{{- $root := .root -}}
{{- range regexSplit "(?m)^---$" (.root.Files.Get .file) -1 }}
{{- $object := fromYaml . }}
{{- if and $object (or (not $.kinds) (has $object.kind $.kinds)) }}
{{- $meta := $object.metadata }}
{{- if eq (default "" $meta.namespace) "kubelink" }}
{{- $_ := set $meta "namespace" $root.Release.Namespace }}
{{- end }}
{{- if eq $object.kind "Namespace" }}
{{- $_ := set $meta "name" $root.Release.Namespace }}
{{- end }}
{{- $_ := set $meta "labels" (merge (include "kubelink.labels" $root | fromYaml) (default dict $meta.labels)) }}
{{- range $object.subjects }}
{{- $_ := set . "namespace" $root.Release.Namespace }}
{{- end }}
---
{{ toYaml $object }}
{{- end }}
{{- end }}
{{- end -}}

{{/* The address of kubelink's DNS service. The 11th address of a service network is its first one and eleven. */}}
{{- define "kubelink.dnsServiceIP" -}}
{{- if .Values.dnsServiceIP -}}
{{ .Values.dnsServiceIP }}
{{- else -}}
{{- $parts := splitList "/" .Values.serviceCIDR -}}
{{- $address := first $parts -}}
{{- if hasSuffix "::" $address -}}
{{ $address }}b
{{- else if and (regexMatch "^[0-9.]+$" $address) (le (int (last $parts)) 28) -}}
{{- $bytes := splitList "." $address -}}
{{- if mod (last $bytes) 16 -}}
{{ fail (printf "serviceCIDR: %q is no network: its first address ends with 0, or another multiple of 16" .Values.serviceCIDR) }}
{{- end -}}
{{ join "." (initial $bytes) }}.{{ add 11 (last $bytes) }}
{{- else -}}
{{ fail (printf "dnsServiceIP: the 11th address of serviceCIDR %q is not clear: set it" .Values.serviceCIDR) }}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The pod of a hook, which runs a command of the image. It needs no rights but those of its account. */}}
{{- define "kubelink.hookPod" -}}
restartPolicy: Never
serviceAccountName: {{ .account }}
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets: {{ toJson . }}
{{- end }}
{{- with .root.Values.nodeSelector }}
nodeSelector: {{ toJson . }}
{{- end }}
{{- with .root.Values.tolerations }}
tolerations: {{ toJson . }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "kubelink.hookContainer" -}}
image: {{ include "kubelink.image" . }}
{{- with .Values.image.pullPolicy }}
imagePullPolicy: {{ . }}
{{- end }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end -}}
