/* SPP/1, the device's side: a reference in C99 for firmware. Specification: docs/spp1.md.
 *
 * No heap, no operating system, no standard I/O: the machine lives in one `struct spp1_device` that the caller
 * owns (about 8 KiB with the sizes below), and reaches the hardware through the hooks of `struct spp1_board` only.
 * Bytes go in with spp1_receive, in any pieces; frames go out through the hook `transmit`. It is called from one
 * context; nothing here is safe to be called from an interrupt.
 *
 * What is yours to port is `struct spp1_board`. What it must keep: `object_write`, `new_key`, `erase` and `seal`
 * replace flash atomically (power lost at any moment leaves the old content or the new one, whole), reads come from
 * flash and not from a copy, and no hook lets the private key out.
 */
#ifndef SPP1_H
#define SPP1_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SPP1_MAX_LINE 1024    /* longest line after HELLO; 256 to 4096. Smaller saves RAM and costs more DATA requests */
#define SPP1_STAGE_BYTES 4096 /* longest object that one COMMIT can write; a chain of two certificates is about 1.7 KiB */
#define SPP1_CSR_BYTES 384    /* a P-256 request with a common name of 64 characters is at most 302 bytes */

enum spp1_result { SPP1_OK, SPP1_ABSENT, SPP1_FLASH_FAILED, SPP1_RNG_FAILED, SPP1_NET_FAILED };
enum spp1_object { SPP1_CHAIN, SPP1_CA, SPP1_CONF };
enum spp1_seal { SPP1_NOT_SEALED, SPP1_SEALED_FINAL, SPP1_SEALED_ERASABLE };

/* Printable ASCII, 1 to 64 characters each; `serial` is the hardware serial on the label, `uid` the chip's own id. */
struct spp1_identity {
    const char *model, *hw, *fw, *serial, *uid, *rng;
};

struct spp1_board {
    void *context; /* handed to every hook */
    struct spp1_identity identity;

    /* Bytes that nobody can guess; SPP1_RNG_FAILED when the generator is not healthy. */
    enum spp1_result (*random)(void *context, uint8_t *out, size_t length);

    /* The uncompressed point (0x04, X, Y) of the key in flash; SPP1_ABSENT when there is none. */
    enum spp1_result (*public_key)(void *context, uint8_t point[65]);
    /* A new P-256 key in flash; a key and a chain that were there go in the same write. `seed` is mixed into the
     * generator and never replaces it; its length may be 0. */
    enum spp1_result (*new_key)(void *context, const uint8_t *seed, size_t length);
    /* ECDSA over a SHA-256 digest as a DER ECDSA-Sig-Value of at most 72 bytes. */
    enum spp1_result (*sign)(void *context, const uint8_t digest[32], uint8_t signature[72], size_t *length);

    /* SPP1_ABSENT when the object is not there. `object_read` gives exactly `length` bytes from `offset`. */
    enum spp1_result (*object_length)(void *context, enum spp1_object object, size_t *length);
    enum spp1_result (*object_read)(void *context, enum spp1_object object, size_t offset, uint8_t *out, size_t length);
    enum spp1_result (*object_write)(void *context, enum spp1_object object, const uint8_t *content, size_t length);

    enum spp1_result (*seal_policy)(void *context, enum spp1_seal *policy);
    enum spp1_result (*seal)(void *context, enum spp1_seal policy);
    enum spp1_result (*erase)(void *context); /* key, objects and seal; identity and time floor stay */
    enum spp1_result (*move_time_floor)(void *context, uint64_t unix_seconds); /* forward only */

    /* NULL: the device has no network, and does not declare `net`. Otherwise connect to the gateway as in the field
     * (mutual TLS with the key, `chain` and `ca`, the server's name checked, client identifier `id`), publish once with
     * QoS 1, wait for the acknowledgement, disconnect: SPP1_OK only then. What may take more than 15 s calls
     * spp1_busy first. */
    enum spp1_result (*publish)(void *context, const char *host, unsigned port, const char *id, const char *topic);

    void (*transmit)(void *context, const char *bytes, size_t length);
    void (*reset)(void *context); /* once everything transmitted has left; the next boot calls spp1_start */
};

enum spp1_verb {
    SPP1_IDENT, SPP1_STATUS, SPP1_KEYGEN, SPP1_CSR, SPP1_PROVE, SPP1_BEGIN, SPP1_DATA, SPP1_COMMIT, SPP1_READ,
    SPP1_HASH, SPP1_TIME, SPP1_RESET, SPP1_SEAL, SPP1_ERASE, SPP1_CONNECT, SPP1_VERBS
};

/* A frame in the making, newlines included. */
struct spp1_frame {
    char text[SPP1_MAX_LINE + 2];
    size_t length;
};

/* One boot of one device. Every member is private. */
struct spp1_device {
    const struct spp1_board *board;
    uint8_t boot_id[16], sid[16], hello_nonce[16];
    char sid_text[25];
    bool has_session, is_verified, is_open, is_resetting;

    char line[SPP1_MAX_LINE + 1]; /* the line that is arriving */
    size_t line_length, line_limit;
    bool line_too_long;

    uint32_t last_sequence, last_crc; /* the last request, and its reply below; 0: none yet */
    uint32_t sequence;                /* the request in hand */
    struct spp1_frame reply;
    char hello_reply[258]; /* of the current session; a HELLO with its nonce gets it again */
    size_t hello_reply_length;

    enum spp1_object open_object; /* the open transaction */
    size_t open_length, open_filled;
    uint8_t open_digest[32];
    char open_txn[33], committed_txn[33];
    uint8_t stage[SPP1_STAGE_BYTES];

    uint8_t csr[SPP1_CSR_BYTES];
    size_t csr_length;
    const char *last_error;
};

/* Begin a boot. SPP1_RNG_FAILED when no boot id could be drawn: the device must not serve then. */
enum spp1_result spp1_start(struct spp1_device *device, const struct spp1_board *board);

/* Take bytes as they came from the line. What is no valid frame is dropped. */
void spp1_receive(struct spp1_device *device, const uint8_t *bytes, size_t length);

/* From within a slow hook (`new_key` in a secure element, say): tell the host to wait `ms` more, at most 60000. */
void spp1_busy(struct spp1_device *device, unsigned ms);

#endif
