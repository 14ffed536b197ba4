# The image of the Deployment in deploy: bin/kubelink (make build) and iptables.
FROM debian:bookworm-slim
RUN apt-get update && apt-get install -y --no-install-recommends iptables ca-certificates && rm -rf /var/lib/apt/lists/*
COPY bin/kubelink /kubelink
ENTRYPOINT ["/kubelink"]
