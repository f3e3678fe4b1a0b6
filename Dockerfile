# Two stages: a compiler, then a small image with the one binary.
#
#   docker build -t quire .
#   docker run --hostname quire-1 --volume quire-1:/data quire \
#       serve --bootstrap --insecure --address quire-1:9001
#
# compose.yaml runs a cluster of three.

FROM rust:1.95-slim-bookworm AS build
# SQLite is compiled from source, which needs a C compiler.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN cargo build --release --locked --package quire --bin quire

FROM debian:bookworm-slim
RUN groupadd --gid 10001 quire \
    && useradd --uid 10001 --gid 10001 --no-create-home --shell /usr/sbin/nologin quire \
    && install --directory --owner quire --group quire --mode 0750 /data
COPY --from=build /src/target/release/quire /usr/local/bin/quire
USER 10001:10001
VOLUME /data
ENV QUIRE_DATA_DIR=/data
EXPOSE 9001
STOPSIGNAL SIGTERM
# Asks the node itself, at its own address (QUIRE_ADDRESS), whether it knows a leader.
HEALTHCHECK --interval=5s --timeout=5s --start-period=30s --retries=3 \
    CMD ["quire", "health"]
ENTRYPOINT ["quire"]
CMD ["serve"]
