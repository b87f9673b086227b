#include "spp1_wire.h"

#include <string.h>

/* --- CRC-32/ISO-HDLC --- */

uint32_t spp1_crc32(const void *bytes, size_t length) {
    const uint8_t *at = bytes;
    uint32_t crc = 0xFFFFFFFFu;
    for (; length--; at++) {
        crc ^= *at;
        for (int bit = 0; bit < 8; bit++) crc = (crc >> 1) ^ (0xEDB88320u & (0u - (crc & 1u)));
    }
    return ~crc;
}

/* --- SHA-256, FIPS 180-4; replace it by your hardware's --- */

static const uint32_t ROUND[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

static uint32_t rotate(uint32_t x, int n) { return x >> n | x << (32 - n); }

static void compress(uint32_t state[8], const uint8_t block[64]) {
    uint32_t w[64], v[8];
    for (int i = 0; i < 16; i++)
        w[i] = (uint32_t)block[4 * i] << 24 | (uint32_t)block[4 * i + 1] << 16 | (uint32_t)block[4 * i + 2] << 8 |
               block[4 * i + 3];
    for (int i = 16; i < 64; i++) {
        uint32_t a = rotate(w[i - 15], 7) ^ rotate(w[i - 15], 18) ^ w[i - 15] >> 3;
        uint32_t b = rotate(w[i - 2], 17) ^ rotate(w[i - 2], 19) ^ w[i - 2] >> 10;
        w[i] = w[i - 16] + a + w[i - 7] + b;
    }
    memcpy(v, state, sizeof v);
    for (int i = 0; i < 64; i++) {
        uint32_t e = rotate(v[4], 6) ^ rotate(v[4], 11) ^ rotate(v[4], 25);
        uint32_t a = rotate(v[0], 2) ^ rotate(v[0], 13) ^ rotate(v[0], 22);
        uint32_t one = v[7] + e + ((v[4] & v[5]) ^ (~v[4] & v[6])) + ROUND[i] + w[i];
        uint32_t two = a + ((v[0] & v[1]) ^ (v[0] & v[2]) ^ (v[1] & v[2]));
        memmove(v + 1, v, 7 * sizeof v[0]);
        v[4] += one;
        v[0] = one + two;
    }
    for (int i = 0; i < 8; i++) state[i] += v[i];
}

void spp1_sha256_start(struct spp1_sha256 *hash) {
    static const uint32_t first[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                      0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    memcpy(hash->state, first, sizeof first);
    hash->length = 0;
}

void spp1_sha256_add(struct spp1_sha256 *hash, const void *bytes, size_t length) {
    const uint8_t *at = bytes;
    for (; length--; at++) {
        hash->block[hash->length++ % 64] = *at;
        if (hash->length % 64 == 0) compress(hash->state, hash->block);
    }
}

void spp1_sha256_end(struct spp1_sha256 *hash, uint8_t digest[32]) {
    uint64_t bits = hash->length * 8;
    uint8_t end = 0x80, zero = 0, count[8];
    for (int i = 0; i < 8; i++) count[i] = (uint8_t)(bits >> (56 - 8 * i));
    spp1_sha256_add(hash, &end, 1);
    while (hash->length % 64 != 56) spp1_sha256_add(hash, &zero, 1);
    spp1_sha256_add(hash, count, sizeof count);
    for (int i = 0; i < 32; i++) digest[i] = (uint8_t)(hash->state[i / 4] >> (24 - 8 * (i % 4)));
}

void spp1_sha256(const void *bytes, size_t length, uint8_t digest[32]) {
    struct spp1_sha256 hash;
    spp1_sha256_start(&hash);
    spp1_sha256_add(&hash, bytes, length);
    spp1_sha256_end(&hash, digest);
}

/* --- base64 and hex --- */

static const char ALPHABET[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

void spp1_base64(const uint8_t *bytes, size_t length, char *out) {
    for (size_t i = 0; i < length; i += 3) {
        uint32_t group = (uint32_t)bytes[i] << 16;
        if (i + 1 < length) group |= (uint32_t)bytes[i + 1] << 8;
        if (i + 2 < length) group |= bytes[i + 2];
        *out++ = ALPHABET[group >> 18];
        *out++ = ALPHABET[group >> 12 & 63];
        *out++ = i + 1 < length ? ALPHABET[group >> 6 & 63] : '=';
        *out++ = i + 2 < length ? ALPHABET[group & 63] : '=';
    }
    *out = 0;
}

static int six_bits(char c) {
    const char *found = c ? strchr(ALPHABET, c) : NULL;
    return found ? (int)(found - ALPHABET) : -1;
}

bool spp1_unbase64(const char *text, size_t length, uint8_t *out, size_t most, size_t *out_length) {
    size_t pad = 0, filled = 0;
    uint32_t bits = 0;
    if (length % 4 != 0) return false;
    while (pad < 2 && pad < length && text[length - 1 - pad] == '=') pad++;
    if (length / 4 * 3 - pad > most) return false;
    for (size_t i = 0; i < length - pad; i++) {
        int value = six_bits(text[i]);
        if (value < 0) return false;
        bits = bits << 6 | (uint32_t)value;
        if (i % 4 != 0) out[filled++] = (uint8_t)(bits >> (6 - 2 * (i % 4)));
    }
    *out_length = filled;
    return pad == 0 || (bits & (pad == 2 ? 15u : 3u)) == 0; /* other bits would be another spelling of the same bytes */
}

void spp1_hex(const uint8_t digest[32], char out[65]) {
    for (int i = 0; i < 32; i++) {
        out[2 * i] = "0123456789abcdef"[digest[i] >> 4];
        out[2 * i + 1] = "0123456789abcdef"[digest[i] & 15];
    }
    out[64] = 0;
}

bool spp1_unhex(const char *text, size_t length, uint8_t digest[32]) {
    static const char digits[] = "0123456789abcdef";
    if (length != 64) return false;
    for (int i = 0; i < 64; i++) {
        const char *found = text[i] ? strchr(digits, text[i]) : NULL;
        if (!found) return false;
        digest[i / 2] = (uint8_t)(digest[i / 2] << 4 | (found - digits));
    }
    return true;
}

/* --- JSON --- */

#define MAX_BRACKETS 64 /* inside texts too; bounds the recursion below */

static const char *skip_spaces(const char *at, const char *end) {
    while (at < end && *at == ' ') at++; /* control characters are refused before, so a space is all white space */
    return at;
}

static int hex_value(char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

/* One character of a string: where the next begins, or NULL. `code` is its value, 0xFFFF for what is not ASCII. */
static const char *character(const char *at, const char *end, unsigned *code) {
    static const char escapes[] = "\"\\/bfnrt", meanings[] = "\"\\/\b\f\n\r\t";
    if (*at != '\\') {
        *code = (unsigned char)*at < 0x80 ? (unsigned char)*at : 0xFFFF;
        return at + 1;
    }
    if (++at == end) return NULL;
    if (*at == 'u') {
        *code = 0;
        if (end - at < 5) return NULL;
        for (int i = 1; i <= 4; i++) {
            int value = hex_value(at[i]);
            if (value < 0) return NULL;
            *code = *code << 4 | (unsigned)value;
        }
        if (*code >= 0x80) *code = 0xFFFF;
        return at + 5;
    }
    const char *found = *at ? strchr(escapes, *at) : NULL;
    if (!found) return NULL;
    *code = (unsigned char)meanings[found - escapes];
    return at + 1;
}

static const char *string_end(const char *at, const char *end) {
    unsigned code;
    for (at++; at && at < end && *at != '"';) at = character(at, end, &code);
    return at && at < end ? at + 1 : NULL;
}

/* Whether two strings, quotes included, are the same text. What is not ASCII is compared as it is spelt. */
static bool same_text(const char *a, const char *a_end, const char *b, const char *b_end) {
    for (a++, b++, a_end--, b_end--; a < a_end && b < b_end;) {
        unsigned x, y;
        const char *a_next = character(a, a_end, &x), *b_next = character(b, b_end, &y);
        if (x != y) return false;
        if (x == 0xFFFF && (a_next - a != b_next - b || memcmp(a, b, (size_t)(a_next - a)) != 0)) return false;
        a = a_next;
        b = b_next;
    }
    return a == a_end && b == b_end;
}

static const char *digits_end(const char *at, const char *end) {
    const char *start = at;
    while (at < end && *at >= '0' && *at <= '9') at++;
    return at == start ? NULL : at;
}

static const char *number_end(const char *at, const char *end) {
    if (*at == '-' && ++at == end) return NULL;
    at = *at == '0' ? at + 1 : digits_end(at, end);
    if (at && at < end && *at == '.') at = digits_end(at + 1, end);
    if (at && at < end && (*at == 'e' || *at == 'E')) {
        at++;
        if (at < end && (*at == '+' || *at == '-')) at++;
        at = digits_end(at, end);
    }
    return at;
}

/* The end of a value that is known to be valid: without judging it again, so that a deep nest costs no more than once. */
static const char *past(const char *at, const char *end) {
    int depth = 0;
    do {
        if (*at == '"') {
            at = string_end(at, end);
            continue;
        }
        depth += (*at == '{' || *at == '[') - (*at == '}' || *at == ']');
        at++;
    } while (at < end && (depth > 0 || !strchr(",]} ", *at)));
    return at;
}

static const char *value_end(const char *at, const char *end);

static bool stands_before(const char *object, const char *name, const char *name_end, const char *end) {
    for (const char *at = skip_spaces(object + 1, end); at < name;) {
        const char *other_end = string_end(at, end);
        if (same_text(at, other_end, name, name_end)) return true;
        at = skip_spaces(skip_spaces(other_end, end) + 1, end); /* past the colon */
        at = skip_spaces(past(at, end), end);
        at = skip_spaces(at + 1, end); /* past the comma */
    }
    return false;
}

/* The end of an object or list that begins at `at`. */
static const char *group_end(const char *at, const char *end) {
    const char *object = at;
    bool is_object = *at == '{';
    char closing = is_object ? '}' : ']';
    at = skip_spaces(at + 1, end);
    if (at < end && *at == closing) return at + 1;
    for (;;) {
        if (is_object) {
            const char *name = at;
            if (at >= end || *at != '"' || !(at = string_end(at, end))) return NULL;
            if (stands_before(object, name, at, end)) return NULL; /* two parsers could each believe another one */
            at = skip_spaces(at, end);
            if (at >= end || *at++ != ':') return NULL;
        }
        at = value_end(skip_spaces(at, end), end);
        if (!at) return NULL;
        at = skip_spaces(at, end);
        if (at >= end) return NULL;
        if (*at == closing) return at + 1;
        if (*at++ != ',') return NULL;
        at = skip_spaces(at, end);
    }
}

static const char *value_end(const char *at, const char *end) {
    static const char *const words[] = {"true", "false", "null"};
    if (at >= end) return NULL;
    if (*at == '"') return string_end(at, end);
    if (*at == '{' || *at == '[') return group_end(at, end);
    if (*at == '-' || (*at >= '0' && *at <= '9')) return number_end(at, end);
    for (int i = 0; i < 3; i++) {
        size_t length = strlen(words[i]);
        if ((size_t)(end - at) >= length && memcmp(at, words[i], length) == 0) return at + length;
    }
    return NULL;
}

static bool is_utf8(const unsigned char *at, const unsigned char *end) {
    while (at < end) {
        unsigned first = *at++;
        int more = first < 0x80 ? 0 : first >= 0xC2 && first <= 0xDF ? 1 : (first & 0xF0) == 0xE0 ? 2 : 3;
        if (more == 3 && (first < 0xF0 || first > 0xF4)) return false;
        if (end - at < more) return false;
        if (first == 0xE0 && at[0] < 0xA0) return false; /* longer than need be */
        if (first == 0xED && at[0] > 0x9F) return false; /* half of a UTF-16 pair */
        if (first == 0xF0 && at[0] < 0x90) return false;
        if (first == 0xF4 && at[0] > 0x8F) return false;
        while (more--)
            if ((*at++ & 0xC0) != 0x80) return false;
    }
    return true;
}

bool spp1_json_is_object(const char *text, size_t length) {
    const char *end = text + length, *at;
    int brackets = 0;
    for (at = text; at < end; at++) {
        if ((unsigned char)*at < 0x20) return false;
        brackets += *at == '{' || *at == '[';
    }
    if (brackets > MAX_BRACKETS || !is_utf8((const unsigned char *)text, (const unsigned char *)end)) return false;
    at = skip_spaces(text, end);
    if (at >= end || *at != '{' || !(at = group_end(at, end))) return false;
    return skip_spaces(at, end) == end;
}

bool spp1_json_find(const char *object, size_t length, const char *name, struct spp1_value *value) {
    const char *end = object + length, *at = skip_spaces(skip_spaces(object, end) + 1, end);
    size_t wanted = strlen(name);
    while (at < end && *at == '"') {
        const char *name_start = at + 1, *name_end = string_end(at, end), *start;
        size_t matched = 0;
        unsigned code = 0;
        while (name_start < name_end - 1 && matched < wanted) {
            name_start = character(name_start, end, &code);
            if (code != (unsigned char)name[matched]) break;
            matched++;
        }
        start = skip_spaces(skip_spaces(name_end, end) + 1, end);
        at = past(start, end);
        if (matched == wanted && name_start == name_end - 1) {
            value->start = start;
            value->length = (size_t)(at - start);
            return true;
        }
        at = skip_spaces(skip_spaces(at, end) + 1, end);
    }
    return false;
}

bool spp1_json_text(const struct spp1_value *value, char *out, size_t least, size_t most) {
    const char *at = value->start, *end = at + value->length;
    size_t filled = 0;
    if (*at != '"') return false;
    for (at++, end--; at < end; filled++) {
        unsigned code;
        at = character(at, end, &code);
        if (code < 0x20 || code > 0x7E || filled == most) return false;
        out[filled] = (char)code; /* never ahead of `at`: `out` may be the value itself */
    }
    out[filled] = 0;
    return filled >= least;
}

bool spp1_json_integer(const struct spp1_value *value, uint64_t most, uint64_t *number) {
    uint64_t sum = 0;
    for (size_t i = 0; i < value->length; i++) {
        if (value->start[i] < '0' || value->start[i] > '9' || i > 16) return false;
        sum = sum * 10 + (uint64_t)(value->start[i] - '0');
    }
    *number = sum;
    return sum <= most;
}

bool spp1_json_list_has(const struct spp1_value *value, uint64_t wanted, bool *is_list) {
    const char *at = value->start, *end = at + value->length;
    bool found = false;
    *is_list = *at == '[';
    if (!*is_list) return false;
    at = skip_spaces(at + 1, end);
    for (int count = 0; *at != ']'; count++) {
        struct spp1_value item = {at, 0};
        uint64_t number = 0;
        item.length = (size_t)(past(at, end) - at);
        *is_list = count < 16 && spp1_json_integer(&item, 0x7FFFFFFF, &number);
        if (!*is_list) return false;
        found = found || number == wanted;
        at = skip_spaces(at + item.length, end);
        if (*at == ',') at = skip_spaces(at + 1, end);
    }
    return found;
}

/* --- DER --- */

static const uint8_t SPKI_HEAD[26] = {0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01,
                                      0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00};

void spp1_spki(const uint8_t point[65], uint8_t spki[SPP1_SPKI_BYTES]) {
    memcpy(spki, SPKI_HEAD, sizeof SPKI_HEAD);
    memcpy(spki + sizeof SPKI_HEAD, point, 65);
}

/* The next bytes of a base64 body, white space left out; how many, fewer than asked only at its end. */
struct pem_reader {
    const uint8_t *at, *end;
};

static bool next_byte_group(struct pem_reader *pem, uint8_t out[3], size_t *length) {
    char group[4];
    for (int i = 0; i < 4;) {
        if (pem->at == pem->end || *pem->at == '-') return false;
        if (*pem->at > ' ') group[i++] = (char)*pem->at;
        pem->at++;
    }
    return spp1_unbase64(group, 4, out, 3, length);
}

/* A certificate is walked while it is decoded, so that no second copy of it is needed: `depth` levels are entered,
 * `skip` elements of the innermost are passed over, and the next element must be the key. */
struct der_stream {
    struct pem_reader pem;
    uint8_t group[3];
    size_t filled, used;
};

static int next_byte(struct der_stream *der) {
    if (der->used == der->filled) {
        der->used = 0;
        if (!next_byte_group(&der->pem, der->group, &der->filled) || der->filled == 0) return -1;
    }
    return der->group[der->used++];
}

/* Tag and length of the next element; false when it has no sensible one. */
static bool element(struct der_stream *der, int *tag, size_t *length) {
    int first, size;
    if ((*tag = next_byte(der)) < 0 || (first = next_byte(der)) < 0) return false;
    *length = (size_t)first;
    if (first < 0x80) return true;
    size = first & 0x7F;
    if (size == 0 || size > 2) return false;
    for (*length = 0; size--;) {
        int byte = next_byte(der);
        if (byte < 0) return false;
        *length = *length << 8 | (size_t)byte;
    }
    return true;
}

static bool skip(struct der_stream *der, size_t length) {
    while (length--)
        if (next_byte(der) < 0) return false;
    return true;
}

static const uint8_t *find(const uint8_t *at, const uint8_t *end, const char *text) {
    size_t length = strlen(text);
    for (; (size_t)(end - at) >= length; at++)
        if (memcmp(at, text, length) == 0) return at + length;
    return NULL;
}

bool spp1_certifies(const uint8_t *chain, size_t length, const uint8_t spki[SPP1_SPKI_BYTES]) {
    struct der_stream der = {.pem = {chain, chain + length}};
    int tag;
    size_t size;
    der.pem.at = find(chain, chain + length, "-----BEGIN CERTIFICATE-----");
    if (!der.pem.at) return false;
    /* Certificate, TBSCertificate: both sequences are entered (RFC 5280 section 4.1). */
    for (int depth = 0; depth < 2; depth++)
        if (!element(&der, &tag, &size) || tag != 0x30) return false;
    /* [0] version, which version 1 leaves out; serialNumber, signature, issuer, validity, subject */
    if (!element(&der, &tag, &size) || !skip(&der, size)) return false;
    for (int passed = tag == 0xA0 ? 0 : 1; passed < 5; passed++)
        if (!element(&der, &tag, &size) || !skip(&der, size)) return false;
    for (int i = 0; i < SPP1_SPKI_BYTES; i++)
        if (next_byte(&der) != spki[i]) return false;
    return true;
}

/* Put tag and length before `length` bytes that stand at out[4]; moved to the front. The whole length. */
static size_t wrap(uint8_t *out, uint8_t tag, size_t length) {
    size_t head = length < 0x80 ? 2 : length < 0x100 ? 3 : 4;
    memmove(out + head, out + 4, length);
    out[0] = tag;
    if (head == 2) out[1] = (uint8_t)length;
    if (head == 3) out[1] = 0x81, out[2] = (uint8_t)length;
    if (head == 4) out[1] = 0x82, out[2] = (uint8_t)(length >> 8), out[3] = (uint8_t)length;
    return head + length;
}

size_t spp1_request_info(const char *common_name, const uint8_t spki[SPP1_SPKI_BYTES], uint8_t *out) {
    static const uint8_t version[] = {0x02, 0x01, 0x00}, cn_oid[] = {0x06, 0x03, 0x55, 0x04, 0x03},
                         no_attributes[] = {0xA0, 0x00};
    size_t name = strlen(common_name), at = 4;
    memcpy(out + at, version, sizeof version);
    at += sizeof version;
    /* Name: one RDN of one commonName, UTF8String; at most 64 characters, so every length is one byte. */
    const uint8_t heads[] = {0x30, (uint8_t)(name + 11), 0x31, (uint8_t)(name + 9), 0x30, (uint8_t)(name + 7)};
    memcpy(out + at, heads, sizeof heads);
    at += sizeof heads;
    memcpy(out + at, cn_oid, sizeof cn_oid);
    at += sizeof cn_oid;
    out[at++] = 0x0C;
    out[at++] = (uint8_t)name;
    memcpy(out + at, common_name, name);
    at += name;
    memcpy(out + at, spki, SPP1_SPKI_BYTES);
    at += SPP1_SPKI_BYTES;
    memcpy(out + at, no_attributes, sizeof no_attributes);
    return wrap(out, 0x30, at + sizeof no_attributes - 4);
}

size_t spp1_request(const uint8_t *info, size_t info_length, const uint8_t *signature, size_t length, uint8_t *out) {
    static const uint8_t algorithm[] = {0x30, 0x0A, 0x06, 0x08, 0x2A, 0x86, 0x48, 0xCE, 0x3D, 0x04, 0x03, 0x02};
    size_t at = 4;
    memcpy(out + at, info, info_length);
    at += info_length;
    memcpy(out + at, algorithm, sizeof algorithm);
    at += sizeof algorithm;
    out[at++] = 0x03;
    out[at++] = (uint8_t)(length + 1);
    out[at++] = 0;
    memcpy(out + at, signature, length);
    return wrap(out, 0x30, at + length - 4);
}
