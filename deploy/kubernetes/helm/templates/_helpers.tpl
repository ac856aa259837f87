{{- define "qmp-agent.labels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "qmp-agent.config" -}}
monitors:
{{- if .Values.kubevirt }}
  - libvirt: auto
    containers: ["virt-launcher-*"]
{{- else }}
  - dial: /run/qemu/*.qmp
{{- end }}
web:
  listen_address: "0.0.0.0:{{ .Values.port }}"
  config_file: /etc/qmp-agent-web/web.yml
{{- end }}
