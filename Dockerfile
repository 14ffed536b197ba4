# The image of the Deployment in deploy, for machines with a container engine; "make image" needs none. Both have the
# programs (make build), and iptables and CA certificates in the versions of one list.
FROM debian:bookworm-slim
COPY deploy/image/packages.txt /tmp/
RUN apt-get update && apt-get install -y --no-install-recommends --allow-downgrades \
      $(sed -n 's/^\([^# ]*\) .*/\1/p' /tmp/packages.txt) && rm -rf /var/lib/apt/lists/* /tmp/packages.txt
COPY bin/kubelink bin/kubelink-router /
ENTRYPOINT ["/kubelink"]
