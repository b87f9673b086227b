/* What SPP/1 is made of on the line and in certificates: CRC, SHA-256, base64, strict JSON, a little DER. */
#ifndef SPP1_WIRE_H
#define SPP1_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

uint32_t spp1_crc32(const void *bytes, size_t length);

struct spp1_sha256 {
    uint32_t state[8];
    uint64_t length;
    uint8_t block[64];
};
void spp1_sha256_start(struct spp1_sha256 *hash);
void spp1_sha256_add(struct spp1_sha256 *hash, const void *bytes, size_t length);
void spp1_sha256_end(struct spp1_sha256 *hash, uint8_t digest[32]);
void spp1_sha256(const void *bytes, size_t length, uint8_t digest[32]);

/* Standard base64 with padding; `out` has room for the text and its 0. */
void spp1_base64(const uint8_t *bytes, size_t length, char *out);
/* Canonical base64 of at most `most` bytes, or false. `out` may be `text` itself. */
bool spp1_unbase64(const char *text, size_t length, uint8_t *out, size_t most, size_t *out_length);
/* The 64 lower-case hex digits of a digest. */
void spp1_hex(const uint8_t digest[32], char out[65]);
bool spp1_unhex(const char *text, size_t length, uint8_t digest[32]);

/* A value inside a JSON text, as it stands there. */
struct spp1_value {
    const char *start;
    size_t length;
};
/* One JSON object, strictly: UTF-8, no raw control characters, no name twice, at most 64 brackets. */
bool spp1_json_is_object(const char *text, size_t length);
/* The value of a name in a valid object. */
bool spp1_json_find(const char *object, size_t length, const char *name, struct spp1_value *value);
/* A string of printable ASCII without its quotes and escapes; `out` has room for `most` + 1. */
bool spp1_json_text(const struct spp1_value *value, char *out, size_t least, size_t most);
/* A number without sign, fraction and exponent. */
bool spp1_json_integer(const struct spp1_value *value, uint64_t most, uint64_t *number);
/* Whether a list of at most 16 such numbers holds `wanted`; false in `is_list` for anything else. */
bool spp1_json_list_has(const struct spp1_value *value, uint64_t wanted, bool *is_list);

/* SubjectPublicKeyInfo of an uncompressed P-256 point, RFC 5480: a fixed head and the point. */
#define SPP1_SPKI_BYTES 91
void spp1_spki(const uint8_t point[65], uint8_t spki[SPP1_SPKI_BYTES]);
/* Whether the first certificate of a PEM chain is for this key. Its signature is the host's to answer for. */
bool spp1_certifies(const uint8_t *chain, size_t length, const uint8_t spki[SPP1_SPKI_BYTES]);
/* PKCS#10 without its signature: CertificationRequestInfo; its length. `out` has room for 256 bytes. */
size_t spp1_request_info(const char *common_name, const uint8_t spki[SPP1_SPKI_BYTES], uint8_t *out);
/* The whole request: info, ecdsa-with-SHA256, signature; its length. `out` has room for 384 bytes. */
size_t spp1_request(const uint8_t *info, size_t info_length, const uint8_t *signature, size_t length, uint8_t *out);

#endif
