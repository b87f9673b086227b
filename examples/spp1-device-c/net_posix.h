/* The demonstration board's network: one MQTT connection over mutual TLS, with OpenSSL and a socket. */
#ifndef NET_POSIX_H
#define NET_POSIX_H

#include <openssl/types.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct net_credentials {
    EVP_PKEY *key;
    const uint8_t *chain, *ca; /* PEM: the device's certificate and its issuing CA; whom the device trusts */
    size_t chain_length, ca_length;
};

/* Connect, publish once with QoS 1, wait for the acknowledgement, disconnect. True only when it was acknowledged. */
bool net_publish(
    const struct net_credentials *own, const char *host, unsigned port, const char *id, const char *topic
);

#endif
