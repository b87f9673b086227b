/* One MQTT 3.1.1 connection over mutual TLS, as the device will make it in the field. Everything is over in NET_S. */
#define _XOPEN_SOURCE 700
#include "net_posix.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define NET_S 12 /* under the 15 s from which a device has to say busy */
#define PAYLOAD "provisioned"
#define MOST_PACKET 512

static int left_ms(const struct timespec *end) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    long left = (long)(end->tv_sec - now.tv_sec) * 1000 + (end->tv_nsec - now.tv_nsec) / 1000000;
    return left > 0 ? (int)left : 0;
}

static bool is_ready(int line, short events, const struct timespec *end) {
    struct pollfd ready = {.fd = line, .events = events};
    return poll(&ready, 1, left_ms(end)) == 1;
}

static int connect_to(const char *host, unsigned port, const struct timespec *end) {
    struct addrinfo *found = NULL, hints = {.ai_socktype = SOCK_STREAM};
    char service[6];
    int line = -1;
    snprintf(service, sizeof service, "%u", port);
    if (getaddrinfo(host, service, &hints, &found) != 0) return -1;
    for (struct addrinfo *at = found; at && line < 0; at = at->ai_next) {
        int error = 0;
        socklen_t length = sizeof error;
        line = socket(at->ai_family, at->ai_socktype, at->ai_protocol);
        if (line < 0) continue;
        fcntl(line, F_SETFD, FD_CLOEXEC);
        fcntl(line, F_SETFL, O_NONBLOCK);
        bool is_open = connect(line, at->ai_addr, at->ai_addrlen) == 0 || errno == EINPROGRESS;
        is_open = is_open && is_ready(line, POLLOUT, end) &&
                  getsockopt(line, SOL_SOCKET, SO_ERROR, &error, &length) == 0 && error == 0;
        if (!is_open) close(line), line = -1;
    }
    freeaddrinfo(found);
    return line;
}

static bool use_chain(SSL_CTX *tls, const struct net_credentials *own) {
    BIO *text = BIO_new_mem_buf(own->chain, (int)own->chain_length);
    X509 *leaf = PEM_read_bio_X509(text, NULL, NULL, NULL), *above;
    bool is_ours = leaf && SSL_CTX_use_certificate(tls, leaf) == 1 && SSL_CTX_use_PrivateKey(tls, own->key) == 1;
    X509_free(leaf);
    while (is_ours && (above = PEM_read_bio_X509(text, NULL, NULL, NULL)))
        if (SSL_CTX_add0_chain_cert(tls, above) != 1) X509_free(above), is_ours = false;
    BIO_free(text);
    return is_ours;
}

static bool use_ca(SSL_CTX *tls, const struct net_credentials *own) {
    BIO *text = BIO_new_mem_buf(own->ca, (int)own->ca_length);
    X509 *trusted;
    int count = 0;
    while ((trusted = PEM_read_bio_X509(text, NULL, NULL, NULL))) {
        count += X509_STORE_add_cert(SSL_CTX_get_cert_store(tls), trusted) == 1;
        X509_free(trusted);
    }
    BIO_free(text);
    return count > 0;
}

/* The server is who it was called: an address stands in its certificate as one, a name as one. */
static bool expect(SSL *session, const char *host) {
    X509_VERIFY_PARAM *rules = SSL_get0_param(session);
    if (X509_VERIFY_PARAM_set1_ip_asc(rules, host) == 1) return true;
    X509_VERIFY_PARAM_set_hostflags(rules, X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS);
    return SSL_set1_host(session, host) == 1 && SSL_set_tlsext_host_name(session, host) == 1;
}

/* Whether a TLS call that did not finish may be made again. */
static bool goes_on(SSL *session, int result, const struct timespec *end) {
    int wanted = SSL_get_error(session, result);
    if (wanted != SSL_ERROR_WANT_READ && wanted != SSL_ERROR_WANT_WRITE) return false;
    return is_ready(SSL_get_fd(session), wanted == SSL_ERROR_WANT_READ ? POLLIN : POLLOUT, end);
}

static bool shake_hands(SSL *session, const struct timespec *end) {
    int result;
    while ((result = SSL_connect(session)) != 1)
        if (!goes_on(session, result, end)) return false;
    return true;
}

static bool send_all(SSL *session, const uint8_t *bytes, size_t length, const struct timespec *end) {
    int result;
    while ((result = SSL_write(session, bytes, (int)length)) <= 0) /* whole or not at all: no partial writes are on */
        if (!goes_on(session, result, end)) return false;
    return true;
}

/* Exactly these four bytes are the answer: CONNACK with code 0, or PUBACK for packet 1. */
static bool hears(SSL *session, const uint8_t wanted[4], const struct timespec *end) {
    uint8_t heard[4];
    size_t length = 0;
    while (length < sizeof heard) {
        int got = SSL_read(session, heard + length, (int)(sizeof heard - length));
        if (got > 0)
            length += (size_t)got;
        else if (!goes_on(session, got, end))
            return false;
    }
    return memcmp(heard, wanted, sizeof heard) == 0;
}

static size_t put_text(uint8_t *at, const char *text) {
    size_t length = strlen(text);
    at[0] = (uint8_t)(length >> 8);
    at[1] = (uint8_t)length;
    memcpy(at + 2, text, length);
    return length + 2;
}

/* A packet around a body of at most 16,383 bytes. */
static size_t put_packet(uint8_t *packet, uint8_t kind, const uint8_t *body, size_t length) {
    size_t at = 0;
    packet[at++] = kind;
    if (length > 127) packet[at++] = (uint8_t)(length & 127) | 128;
    packet[at++] = (uint8_t)(length > 127 ? length >> 7 : length);
    memcpy(packet + at, body, length);
    return at + length;
}

static bool publish_on(SSL *session, const char *id, const char *topic, const struct timespec *end) {
    static const uint8_t head[] = {0, 4, 'M', 'Q', 'T', 'T', 4, 2, 0, 30}; /* level 4, clean session, 30 s */
    static const uint8_t accepted[4] = {0x20, 2, 0, 0}, acknowledged[4] = {0x40, 2, 0, 1}, leave[2] = {0xE0, 0};
    uint8_t body[MOST_PACKET], packet[MOST_PACKET + 3];
    if (strlen(id) > 64 || strlen(topic) > 256) return false;
    memcpy(body, head, sizeof head);
    size_t length = sizeof head + put_text(body + sizeof head, id);
    if (!send_all(session, packet, put_packet(packet, 0x10, body, length), end)) return false;
    if (!hears(session, accepted, end)) return false;
    length = put_text(body, topic);
    body[length++] = 0;
    body[length++] = 1; /* packet identifier */
    memcpy(body + length, PAYLOAD, sizeof PAYLOAD - 1);
    length += sizeof PAYLOAD - 1;
    if (!send_all(session, packet, put_packet(packet, 0x32, body, length), end)) return false;
    return hears(session, acknowledged, end) && send_all(session, leave, sizeof leave, end);
}

bool net_publish(
    const struct net_credentials *own, const char *host, unsigned port, const char *id, const char *topic
) {
    struct timespec end;
    clock_gettime(CLOCK_MONOTONIC, &end);
    end.tv_sec += NET_S;
    SSL_CTX *tls = SSL_CTX_new(TLS_client_method());
    SSL *session = NULL;
    bool is_done = tls && SSL_CTX_set_min_proto_version(tls, TLS1_2_VERSION) == 1 && use_chain(tls, own) && use_ca(tls, own);
    int line = is_done ? connect_to(host, port, &end) : -1;
    if (line >= 0) {
        SSL_CTX_set_verify(tls, SSL_VERIFY_PEER, NULL);
        session = SSL_new(tls);
    }
    is_done = session && SSL_set_fd(session, line) == 1 && expect(session, host) && shake_hands(session, &end) &&
              publish_on(session, id, topic, &end);
    if (is_done) SSL_shutdown(session);
    SSL_free(session);
    SSL_CTX_free(tls);
    if (line >= 0) close(line);
    return is_done;
}
