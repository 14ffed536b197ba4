{{/* Refuses what is no network. */}}
{{- define "kubelink.checkNetwork" -}}
{{- $parts := splitList "/" .network -}}
{{- $address := first $parts -}}
{{- $good := false -}}
{{- if contains ":" $address -}}
{{- $good = and (regexMatch "^([0-9a-f]{0,4}:){2,7}([0-9a-f]{0,4}|[0-9.]+)$" $address) (le (int (last $parts)) 128)
  (not (contains ":::" $address)) (le (len (regexFindAll "::" $address -1)) 1)
  (or (contains "::" $address) (eq (len (splitList ":" $address)) 8)) -}}
{{- else -}}
{{- $good = and (regexMatch "^((25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])([.]|$)){4}$" $address) (le (int (last $parts)) 32) -}}
{{- end -}}
{{- if not $good -}}
{{ fail (printf "%s: %q is no network, such as 192.168.0.0/24" .name .network) }}
{{- end -}}
{{- end -}}

{{/* What the schema cannot say: values that do not go together. Each message names values and remedy. */}}
{{- define "kubelink.validate" -}}
{{- $set := dict "service-cidr" "serviceCIDR" "pod-cidr" "podCIDR" "node-cidr" "nodeCIDR" "mode" "links" "ipip" "overlay"
  "dns-propagation" "dnsPropagation" "coredns-configure" "clusterDNS.configure" "dns-advertisement" "advertisement.enabled"
  "service-account" "advertisement.enabled" "secret-manage-mode" "certificate.source" "dns-name" "endpoint"
  "disable-deploy-crds" "crds" "state-dir" "stateDir" "node-ip" "" "service" "" "secret" "" -}}
{{- range $property, $_ := .Values.properties -}}
{{- if not (regexMatch "^[a-z][a-z0-9.-]*$" $property) -}}
{{ fail (printf "properties.%s: it is no name of a property: plugin/kubelink/README.md has them" $property) }}
{{- end -}}
{{- if hasKey $set $property -}}
{{ fail (printf "properties.%s: the chart sets it%s: take it out of properties" $property (get $set $property | empty | ternary "" (printf " by the value %s" (get $set $property)))) }}
{{- end -}}
{{- end -}}
{{- range $property, $value := .Values.properties -}}
{{- if regexMatch `"|\\r|(^|\s)#` (toString $value) -}}
{{ fail (printf "properties.%s: %q: quotes, line ends and comments are not for the Corefile: leave them out" $property (toString $value)) }}
{{- end -}}
{{- end -}}
{{- if regexMatch `\s` (toString (get .Values.properties "mesh-domain")) -}}
{{ fail (printf "properties.mesh-domain: %q: want one name" (get .Values.properties "mesh-domain")) }}
{{- end -}}
{{- $own := list "Corefile" "values.properties" "names.properties" -}}
{{- range include "kubelink.components" . | fromJsonArray -}}
{{- with $.Files.Get (printf "files/components/%s/properties.yaml" .) -}}
{{- $own = concat $own (keys (fromYaml .).data) -}}
{{- end -}}
{{- end -}}
{{- range $file, $_ := .Values.files -}}
{{- if has $file $own -}}
{{ fail (printf "files.%s: the chart writes this file: use dns.allow and properties, or another name" $file) }}
{{- end -}}
{{- if not (regexMatch "^[-._a-zA-Z0-9]+$" $file) -}}
{{ fail (printf "files.%s: a file has a name of letters, digits, - _ and ." $file) }}
{{- end -}}
{{- end -}}
{{- range $i, $network := .Values.dns.allow -}}
{{- include "kubelink.checkNetwork" (dict "name" (printf "dns.allow[%d]" $i) "network" $network) -}}
{{- end -}}
{{- range $i, $network := .Values.service.loadBalancerSourceRanges -}}
{{- include "kubelink.checkNetwork" (dict "name" (printf "service.loadBalancerSourceRanges[%d]" $i) "network" $network) -}}
{{- end -}}
{{- range $name := list "serviceCIDR" "podCIDR" "nodeCIDR" "meshCIDR" -}}
{{- $network := get $.Values $name -}}
{{- include "kubelink.checkNetwork" (dict "name" $name "network" $network) -}}
{{- if and (ne $name "meshCIDR") (eq $network $.Values.meshCIDR) -}}
{{ fail (printf "meshCIDR: %s is %s, too: the mesh needs a network that is nothing else in any of its clusters" $network $name) }}
{{- end -}}
{{- end -}}
{{- with .Values -}}
{{- if and (eq .overlay "vxlan") (not .router.enabled) -}}
{{ fail "overlay: vxlan leads packets between the routers of nodes and the gateway: set router.enabled to true" }}
{{- end -}}
{{- if and (eq .mode "pod") (not .router.enabled) -}}
{{ fail "mode: pod needs the router, which leads packets of every node to the broker's pod: set router.enabled to true" }}
{{- end -}}
{{- if and (eq .links "wireguard") (ne .certificate.source "secret") -}}
{{ fail (printf "certificate.source: %s is for TLS links. With links: wireguard there is a key in place of a certificate: set it to secret" .certificate.source) }}
{{- end -}}
{{- if and (ne .certificate.source "secret") (not .endpoint) -}}
{{ fail (printf "endpoint: certificate.source %s needs the name of this cluster for its peers, such as kubelink.kubelink1.example" .certificate.source) }}
{{- end -}}
{{- if and (eq .certificate.source "cert-manager") (not .certificate.issuerRef.name) -}}
{{ fail "certificate.issuerRef.name: cert-manager needs an issuer, one that the other clusters of the mesh trust" }}
{{- end -}}
{{- if and .clusterDNS.restart (not .clusterDNS.configure) -}}
{{ fail "clusterDNS.restart: true is for clusterDNS.configure only: set both, or none" }}
{{- end -}}
{{- if and .advertisement.tokenSecret (not .advertisement.enabled) -}}
{{ fail "advertisement.tokenSecret: true is for advertisement.enabled only: set both, or none" }}
{{- end -}}
{{- if and .podDisruptionBudget.enabled (lt (int .replicas) 2) -}}
{{ fail (printf "podDisruptionBudget.enabled: true with replicas: %v would hold up every drain of the broker's node: set replicas to 2" .replicas) }}
{{- end -}}
{{- if and .podMonitor.enabled (eq .mode "node") (not .metrics.expose) -}}
{{ fail "podMonitor.enabled: true finds no metrics in mode: node, where they are on 127.0.0.1: set metrics.expose to true" }}
{{- end -}}
{{- if and .networkPolicy.enabled (eq .mode "node") -}}
{{ fail "networkPolicy.enabled: true does nothing in mode: node: policies do not see pods in the network of their node. Set it to false, or mode to pod" }}
{{- end -}}
{{- if and .service.loadBalancerClass (ne .service.type "LoadBalancer") -}}
{{ fail (printf "service.loadBalancerClass: %s is for service.type LoadBalancer, not %s" .service.loadBalancerClass .service.type) }}
{{- end -}}
{{- if and .service.nodePort (eq .service.type "ClusterIP") -}}
{{ fail (printf "service.nodePort: %v is for service.type NodePort or LoadBalancer, not ClusterIP" .service.nodePort) }}
{{- end -}}
{{- end -}}
{{- end -}}
