{{- define "dsproxy.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name }}{{ else }}{{ .Release.Name }}-{{ .Chart.Name }}{{ end -}}
{{- end }}

{{- define "dsproxy.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "dsproxy.labels" -}}
{{ include "dsproxy.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end }}

{{- define "dsproxy.serviceAccount" -}}
{{ .Values.serviceAccount.name | default (include "dsproxy.name" .) }}
{{- end }}

{{- define "dsproxy.image" -}}
{{- with .Values.image -}}
{{- with .registry }}{{ . }}/{{ end }}{{ .repository }}
{{- if .digest }}@{{ .digest }}{{ else }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end }}
{{- end }}

{{- /* The flags of `dsproxy run`: of the daemon, and of the init container, which sets what they ask for. */ -}}
{{- define "dsproxy.flags" -}}
{{- $values := .Values -}}
- --hostname-override=$(NODE_NAME)
{{- with $values.clusterCIDRs }}
- --cluster-cidr={{ join "," . }}
{{- end }}
{{- with $values.nodePortAddresses }}
- --nodeport-addresses={{ join "," . }}
{{- end }}
{{- with $values.nodeDevices }}
- --node-devices={{ join "," . }}
{{- end }}
{{- with $values.podInterfaces }}
- --pod-interfaces={{ join "," . }}
{{- end }}
- --attach={{ $values.attach }}
- --xdp={{ $values.xdp }}
- --socket-lb={{ $values.socketLB }}
{{- if ne $values.socketLB "off" }}
- --cgroup=/host/cgroup
{{- end }}
{{- if $values.masqueradeAll }}
- --masquerade-all
{{- end }}
{{- if $values.masqueradeEgress }}
- --masquerade-egress
{{- with $values.nonMasqueradeCIDRs }}
- --non-masquerade-cidrs={{ join "," . }}
{{- end }}
{{- end }}
- --tcp-gone-backend={{ $values.tcpGoneBackend }}
{{- with $values.snatPorts }}
- --snat-ports={{ . }}
{{- end }}
{{- with $values.nodePortRange }}
- --node-port-range={{ . }}
{{- end }}
{{- if not $values.reservePorts }}
- --reserve-ports=false
{{- end }}
{{- range $section, $prefix := dict "conntrack" "conntrack" "timeouts" "timeout" "sizes" "max" }}
{{- range $name, $value := index $values $section }}
{{- if not (kindIs "invalid" $value) }}
{{- /* A number of YAML is a float in a template. */}}
- --{{ $prefix }}-{{ kebabcase $name }}={{ if kindIs "float64" $value }}{{ int64 $value }}{{ else }}{{ $value }}{{ end }}
{{- end }}
{{- end }}
{{- end }}
- --healthz-bind-address=[::]:{{ $values.health.port }}
- --metrics-bind-address={{ $values.metrics.bindAddress }}
- --metrics-services={{ int64 $values.metrics.services }}
{{- if $values.bindAddressHardFail }}
- --bind-address-hard-fail
{{- end }}
- --oom-score-adj={{ $values.oomScoreAdj }}
- --log-level={{ $values.log.level }}
- --log-format={{ $values.log.format }}
{{- range $values.extraArgs }}
- {{ . | quote }}
{{- end }}
{{- end }}
