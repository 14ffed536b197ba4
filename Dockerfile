# The image of the Deployment in deploy, for who has a container engine; "make image" needs none. Both have bin/kubelink
# (make build), and iptables and CA certificates in the versions of one list.
FROM debian:bookworm-slim
COPY deploy/image/packages.txt /tmp/
RUN apt-get update && apt-get install -y --no-install-recommends --allow-downgrades \
      $(sed -n 's/^\([^# ]*\) .*/\1/p' /tmp/packages.txt) && rm -rf /var/lib/apt/lists/* /tmp/packages.txt
COPY bin/kubelink /kubelink
ENTRYPOINT ["/kubelink"]
