/* The machine: lines to frames, frames to requests, requests to verbs. docs/spp1.md is quoted by section.
 *
 * At most once within a boot (section 3): the last request's number, CRC and reply are kept, and a repetition gets the
 * reply again. A verb first checks, then writes flash once, then changes RAM, so that a failed or cut write leaves
 * everything as it was. The state is derived from flash and RAM and stored nowhere, so it cannot contradict them.
 */
#include "spp1.h"

#include <string.h>

#include "spp1_wire.h"

#if SPP1_MAX_LINE < 256 || SPP1_MAX_LINE > 4096
#error "SPP1_MAX_LINE is 256 to 4096"
#endif

#define FIRST_LINE 256u                             /* before HELLO, and for every HELLO and error reply */
#define CHUNK ((SPP1_MAX_LINE - 112) / 4 * 3)       /* base64 of it and the rest of a DATA frame fit into a line */
#define MOST_CHUNK (CHUNK > 2048 ? 2048 : CHUNK)
#define MAX_SEQUENCE 0x7FFFFFFFu
#define MAX_UNIX 0x1FFFFFFFFFFFFFu                  /* 2^53 - 1 */
#define TEXT 64
#define SLOT "id"

enum state { BLANK, KEYED, STAGED, CERTED, VERIFIED, SEALED };
static const char *const STATE_NAMES[] = {"BLANK", "KEYED", "STAGED", "CERTED", "VERIFIED", "SEALED"};

/* A "no" is the error code, or NULL for done; text for people goes with it in `why`. */
struct answer {
    const char *code, *why;
};
static const struct answer DONE = {NULL, NULL};
static struct answer no(const char *code, const char *why) { return (struct answer){code, why}; }

struct request {
    const char *json;
    size_t length;
};

/* --- writing a frame --- */

static void put(struct spp1_frame *frame, const char *text) {
    size_t length = strlen(text), room = sizeof frame->text - frame->length;
    if (length > room) length = room; /* never reached: every reply is shorter than its line, see docs/spp1.md section 4 */
    memcpy(frame->text + frame->length, text, length);
    frame->length += length;
}

static void put_number(struct spp1_frame *frame, uint64_t number) {
    char digits[21];
    size_t at = sizeof digits - 1;
    digits[at] = 0;
    do digits[--at] = (char)('0' + number % 10);
    while (number /= 10);
    put(frame, digits + at);
}

/* Printable ASCII as a JSON string. */
static void put_string(struct spp1_frame *frame, const char *text) {
    char one[3] = {0};
    put(frame, "\"");
    for (; *text; text++) {
        bool is_special = *text == '"' || *text == '\\';
        one[0] = is_special ? '\\' : *text;
        one[1] = is_special ? *text : 0;
        put(frame, one);
    }
    put(frame, "\"");
}

static void put_name(struct spp1_frame *frame, const char *name) {
    put(frame, ",\"");
    put(frame, name);
    put(frame, "\":");
}

static void put_text_field(struct spp1_frame *frame, const char *name, const char *value) {
    put_name(frame, name);
    put_string(frame, value);
}

static void put_number_field(struct spp1_frame *frame, const char *name, uint64_t value) {
    put_name(frame, name);
    put_number(frame, value);
}

static void put_blob_field(struct spp1_frame *frame, const char *name, const uint8_t *bytes, size_t length) {
    char group[5];
    put_name(frame, name);
    put(frame, "\"");
    for (size_t i = 0; i < length; i += 3) {
        spp1_base64(bytes + i, length - i < 3 ? length - i : 3, group);
        put(frame, group);
    }
    put(frame, "\"");
}

static void put_digest_field(struct spp1_frame *frame, const char *name, const uint8_t digest[32]) {
    char hex[65];
    spp1_hex(digest, hex);
    put_text_field(frame, name, hex);
}

static void frame_start(struct spp1_frame *frame, const char *sid, uint32_t sequence, const char *kind) {
    frame->length = 0;
    put(frame, "\n!P1 {\"s\":");
    put_string(frame, sid);
    put_number_field(frame, "i", sequence);
    put_text_field(frame, "r", kind);
}

static void frame_end(struct spp1_frame *frame) {
    put(frame, "}");
    uint32_t crc = spp1_crc32(frame->text + 5, frame->length - 5); /* past LF and "!P1 " */
    char digits[] = " *00000000\n";
    for (int i = 0; i < 8; i++) digits[2 + i] = "0123456789abcdef"[crc >> (28 - 4 * i) & 15];
    put(frame, digits);
}

static void transmit(struct spp1_device *device, const struct spp1_frame *frame) {
    device->board->transmit(device->board->context, frame->text, frame->length);
}

static void write_refusal(
    struct spp1_device *device, struct spp1_frame *frame, const char *sid, uint32_t sequence, struct answer answer
) {
    device->last_error = answer.code;
    frame_start(frame, sid, sequence, "err");
    put_text_field(frame, "e", answer.code);
    put_text_field(frame, "m", answer.why); /* at most 36 characters: with the longest `s` still within FIRST_LINE */
    frame_end(frame);
}

/* A refusal that does not take the place of the stored reply. */
static void refuse_aside(struct spp1_device *device, const char *sid, uint32_t sequence, struct answer answer) {
    struct spp1_frame frame;
    write_refusal(device, &frame, sid, sequence, answer);
    transmit(device, &frame);
}

/* --- reading fields --- */

static bool get_text(const struct request *request, const char *name, char *out, size_t least, size_t most) {
    struct spp1_value value;
    return spp1_json_find(request->json, request->length, name, &value) && spp1_json_text(&value, out, least, most);
}

static bool get_number(
    const struct request *request, const char *name, uint64_t least, uint64_t most, uint64_t *number
) {
    struct spp1_value value;
    return spp1_json_find(request->json, request->length, name, &value) && spp1_json_integer(&value, most, number) &&
           *number >= least;
}

static bool get_blob(
    const struct request *request, const char *name, uint8_t *out, size_t least, size_t most, size_t *length
) {
    char text[(64 + 2) / 3 * 4 + 1]; /* every binary field but DATA's is at most 32 bytes */
    return get_text(request, name, text, 0, sizeof text - 1) &&
           spp1_unbase64(text, strlen(text), out, most, length) && *length >= least;
}

static bool get_digest(const struct request *request, const char *name, uint8_t digest[32]) {
    char hex[65];
    return get_text(request, name, hex, 64, 64) && spp1_unhex(hex, 64, digest);
}

static bool has(const struct request *request, const char *name) {
    struct spp1_value value;
    return spp1_json_find(request->json, request->length, name, &value);
}

/* --- what flash says --- */

static struct answer failure(enum spp1_result result) {
    return result == SPP1_RNG_FAILED ? no("E_RNG", "generator is not healthy") : no("E_FLASH", "flash failed");
}

static struct answer key_of(struct spp1_device *device, uint8_t spki[SPP1_SPKI_BYTES], bool *is_there) {
    uint8_t point[65];
    enum spp1_result result = device->board->public_key(device->board->context, point);
    *is_there = result == SPP1_OK;
    if (*is_there) spp1_spki(point, spki);
    return *is_there || result == SPP1_ABSENT ? DONE : failure(result);
}

static struct answer state_of(struct spp1_device *device, enum state *state) {
    const struct spp1_board *board = device->board;
    enum spp1_seal seal;
    uint8_t spki[SPP1_SPKI_BYTES];
    bool has_key;
    size_t length;
    enum spp1_result result = board->seal_policy(board->context, &seal);
    if (result != SPP1_OK) return failure(result);
    struct answer answer = key_of(device, spki, &has_key);
    if (answer.code) return answer;
    result = board->object_length(board->context, SPP1_CHAIN, &length);
    if (result != SPP1_OK && result != SPP1_ABSENT) return failure(result);
    *state = seal != SPP1_NOT_SEALED ? SEALED
             : device->is_open       ? STAGED
             : device->is_verified   ? VERIFIED
             : result == SPP1_OK     ? CERTED
             : has_key               ? KEYED
                                     : BLANK;
    return DONE;
}

/* --- the verbs, section 4 --- */

static const struct answer BAD_FIELD = {"E_ARG", "a field is missing or not allowed"};
static const struct answer NO_SLOT = {"E_ARG", "no such slot"};

static bool slot_is_ours(const struct request *request, struct answer *answer) {
    char slot[17];
    if (!get_text(request, "slot", slot, 1, 16)) return *answer = BAD_FIELD, false;
    if (strcmp(slot, SLOT) != 0) return *answer = NO_SLOT, false;
    return true;
}

static struct answer ident(struct spp1_device *device, const struct request *request, struct spp1_frame *reply) {
    const struct spp1_identity *identity = &device->board->identity;
    (void)request;
    put_text_field(reply, "model", identity->model);
    put_text_field(reply, "hw", identity->hw);
    put_text_field(reply, "fw", identity->fw);
    put_text_field(reply, "sn", identity->serial);
    put_text_field(reply, "uid", identity->uid);
    put_text_field(reply, "rng", identity->rng);
    put(reply, ",\"algs\":[\"p256\"]");
    return DONE;
}

static struct answer status(struct spp1_device *device, const struct request *request, struct spp1_frame *reply) {
    uint8_t spki[SPP1_SPKI_BYTES], digest[32];
    enum state state = BLANK;
    bool has_key;
    struct answer answer = state_of(device, &state);
    (void)request;
    if (answer.code || (answer = key_of(device, spki, &has_key)).code) return answer;
    put_text_field(reply, "state", STATE_NAMES[state]);
    put(reply, has_key ? ",\"slots\":[\"" SLOT "\"]" : ",\"slots\":[]");
    if (has_key) {
        spp1_sha256(spki, sizeof spki, digest);
        put_digest_field(reply, "spki_sha256", digest);
    } else {
        put_text_field(reply, "spki_sha256", "");
    }
    put(reply, state == SEALED ? ",\"sealed\":true" : ",\"sealed\":false");
    put_text_field(reply, "last_error", device->last_error);
    return DONE;
}

/* Compare and swap: a key that is there is replaced only when the request names it. */
static struct answer keygen(struct spp1_device *device, const struct request *request, struct spp1_frame *reply) {
    uint8_t seed[32], named[32], present[32], spki[SPP1_SPKI_BYTES];
    size_t seed_length = 0;
    bool has_key, is_named = has(request, "if_spki");
    char algorithm[TEXT + 1];
    struct answer answer;
    if (!get_text(request, "alg", algorithm, 1, TEXT)) return BAD_FIELD;
    if (is_named && !get_digest(request, "if_spki", named)) return BAD_FIELD;
    if (has(request, "seed") && !get_blob(request, "seed", seed, 1, sizeof seed, &seed_length)) return BAD_FIELD;
    if (!slot_is_ours(request, &answer)) return answer;
    if (strcmp(algorithm, "p256") != 0) return no("E_UNSUPPORTED", "p256 only");
    if ((answer = key_of(device, spki, &has_key)).code) return answer;
    if (has_key) spp1_sha256(spki, sizeof spki, present);
    bool is_kept = has_key && !(is_named && memcmp(named, present, sizeof present) == 0);
    if (!is_kept) {
        enum spp1_result result = device->board->new_key(device->board->context, seed, seed_length);
        if (result != SPP1_OK) return failure(result);
        device->is_open = device->is_verified = false;
        device->csr_length = 0;
        if ((answer = key_of(device, spki, &has_key)).code) return answer;
        if (!has_key) return failure(SPP1_FLASH_FAILED);
    }
    put_blob_field(reply, "spki", spki, sizeof spki);
    put(reply, is_kept ? ",\"existing\":true" : ",\"existing\":false");
    return DONE;
}

static struct answer make_csr(struct spp1_device *device, const struct request *request, struct spp1_frame *reply) {
    uint8_t info[256], spki[SPP1_SPKI_BYTES], digest[32], signature[72];
    size_t length = 0;
    bool has_key;
    char common_name[TEXT + 1];
    struct answer answer;
    if (!get_text(request, "cn", common_name, 1, TEXT)) return BAD_FIELD;
    if (!slot_is_ours(request, &answer)) return answer;
    if ((answer = key_of(device, spki, &has_key)).code) return answer;
    size_t info_length = spp1_request_info(common_name, spki, info);
    spp1_sha256(info, info_length, digest);
    enum spp1_result result = device->board->sign(device->board->context, digest, signature, &length);
    if (result != SPP1_OK) return failure(result);
    device->csr_length = spp1_request(info, info_length, signature, length, device->csr);
    spp1_sha256(device->csr, device->csr_length, digest);
    put_number_field(reply, "len", device->csr_length);
    put_digest_field(reply, "sha256", digest);
    return DONE;
}

static void add_part(struct spp1_sha256 *hash, const void *bytes, size_t length) {
    uint8_t head[2] = {(uint8_t)(length >> 8), (uint8_t)length};
    spp1_sha256_add(hash, head, sizeof head);
    spp1_sha256_add(hash, bytes, length);
}

/* Section 6: the stage and every field with its length in front, so that no two sets of fields are the same bytes. */
static struct answer prove(struct spp1_device *device, const struct request *request, struct spp1_frame *reply) {
    const struct spp1_identity *identity = &device->board->identity;
    uint8_t nonce[32], spki[SPP1_SPKI_BYTES], digest[32], signature[72], stage_byte;
    size_t length = 0;
    uint64_t stage = 0;
    bool has_key;
    enum state state = BLANK;
    struct answer answer;
    struct spp1_sha256 hash;
    if (!get_blob(request, "nonce", nonce, sizeof nonce, sizeof nonce, &length)) return BAD_FIELD;
    if (!get_number(request, "stage", 1, 3, &stage)) return BAD_FIELD;
    if (!slot_is_ours(request, &answer)) return answer;
    if ((answer = state_of(device, &state)).code) return answer;
    bool is_served = stage == 3   ? state == SEALED
                     : stage == 2 ? state == CERTED || state == VERIFIED
                                  : state != SEALED;
    if (!is_served) return no("E_STATE", "not that stage in this state");
    if (stage == 2 && device->committed_txn[0]) return no("E_STATE", "stage 2 needs a reset after COMMIT");
    if ((answer = key_of(device, spki, &has_key)).code) return answer;
    spp1_sha256(spki, sizeof spki, digest);
    stage_byte = (uint8_t)stage;
    spp1_sha256_start(&hash);
    spp1_sha256_add(&hash, "SPP1-PROVE-v1", 14); /* its 0 included */
    spp1_sha256_add(&hash, &stage_byte, 1);
    add_part(&hash, device->sid, sizeof device->sid);
    add_part(&hash, nonce, sizeof nonce);
    add_part(&hash, device->boot_id, sizeof device->boot_id);
    add_part(&hash, identity->uid, strlen(identity->uid));
    add_part(&hash, identity->serial, strlen(identity->serial));
    add_part(&hash, SLOT, sizeof SLOT - 1);
    add_part(&hash, digest, sizeof digest);
    spp1_sha256_end(&hash, digest);
    enum spp1_result result = device->board->sign(device->board->context, digest, signature, &length);
    if (result != SPP1_OK) return failure(result);
    device->is_verified = device->is_verified || stage == 2;
    put_blob_field(reply, "sig", signature, length);
    return DONE;
}

static bool writable(const char *name, enum spp1_object *object) {
    static const char *const names[] = {"chain", "ca", "conf"}; /* in the order of enum spp1_object */
    for (int i = 0; i < 3; i++)
        if (strcmp(name, names[i]) == 0) return *object = (enum spp1_object)i, true;
    return false;
}

static struct answer begin(struct spp1_device *device, const struct request *request, struct spp1_frame *reply) {
    static const size_t most[] = {8192, 8192, 2048};
    char name[TEXT + 1], txn[33];
    uint64_t length = 0;
    uint8_t digest[32];
    enum spp1_object object = SPP1_CHAIN;
    (void)reply;
    if (!get_text(request, "obj", name, 1, TEXT) || !get_number(request, "len", 0, MAX_SEQUENCE, &length) ||
        !get_digest(request, "sha256", digest) || !get_text(request, "txn", txn, 1, 32))
        return BAD_FIELD;
    if (strcmp(name, "key") == 0) return no("E_FORBIDDEN", "keys are made here");
    if (!writable(name, &object)) return no("E_ARG", "no such object to write");
    if (length == 0) return no("E_LEN", "nothing to write");
    if (length > most[object] || length > SPP1_STAGE_BYTES) return no("E_NOSPACE", "larger than there is room for");
    device->is_open = true;
    device->is_verified = false; /* what VERIFIED vouched for is about to change */
    device->open_object = object;
    device->open_length = (size_t)length;
    device->open_filled = 0;
    memcpy(device->open_digest, digest, sizeof digest);
    memcpy(device->open_txn, txn, sizeof txn);
    return DONE;
}

/* Bytes are addressed: what is there already, unchanged, is fine; a gap or other bytes are not. */
static struct answer data(struct spp1_device *device, const struct request *request, struct spp1_frame *reply) {
    struct spp1_value value;
    uint64_t offset = 0;
    size_t length = 0;
    if (!get_number(request, "off", 0, MAX_SEQUENCE, &offset)) return BAD_FIELD;
    if (!spp1_json_find(request->json, request->length, "b64", &value)) return BAD_FIELD;
    /* Decoded where it stands: the frame is ours, its CRC is known, and bytes are fewer than their base64. */
    char *text = device->line + (value.start - device->line);
    uint8_t *piece = (uint8_t *)text;
    if (!spp1_json_text(&value, text, 1, value.length) ||
        !spp1_unbase64(text, strlen(text), piece, MOST_CHUNK, &length) || length == 0)
        return BAD_FIELD;
    size_t end = (size_t)offset + length;
    if (end > device->open_length) return no("E_LEN", "beyond the length announced");
    if (end > device->open_filled) {
        if (offset != device->open_filled) return no("E_ARG", "off is not where the last DATA ended");
        memcpy(device->stage + offset, piece, length);
        device->open_filled = end;
    } else if (memcmp(device->stage + offset, piece, length) != 0) {
        return no("E_ARG", "other bytes stand there");
    }
    put_number_field(reply, "off", end);
    return DONE;
}

static struct answer commit(struct spp1_device *device, const struct request *request, struct spp1_frame *reply) {
    const struct spp1_board *board = device->board;
    uint8_t spki[SPP1_SPKI_BYTES], digest[32];
    char txn[33];
    bool has_key;
    (void)reply;
    if (!get_text(request, "txn", txn, 1, 32)) return BAD_FIELD;
    if (!device->is_open) return strcmp(txn, device->committed_txn) == 0 ? DONE : no("E_ARG", "no such transaction");
    device->is_open = false; /* whatever comes of it */
    if (strcmp(txn, device->open_txn) != 0) return no("E_ARG", "another transaction is open");
    if (device->open_filled != device->open_length) return no("E_LEN", "bytes are missing");
    spp1_sha256(device->stage, device->open_length, digest);
    if (memcmp(digest, device->open_digest, sizeof digest) != 0) return no("E_HASH", "not the digest announced");
    struct answer answer = key_of(device, spki, &has_key);
    if (answer.code) return answer;
    if (device->open_object == SPP1_CHAIN && !spp1_certifies(device->stage, device->open_length, spki))
        return no("E_KEYMISMATCH", "the certificate is for another key");
    enum spp1_result result =
        board->object_write(board->context, device->open_object, device->stage, device->open_length);
    if (result != SPP1_OK) return failure(result);
    memcpy(device->committed_txn, txn, sizeof txn);
    return DONE;
}

/* Where READ and HASH take their bytes from: flash, but for the CSR. */
struct source {
    bool is_csr;
    enum spp1_object object;
    size_t length;
};

static struct answer source_of(struct spp1_device *device, const struct request *request, struct source *source) {
    const struct spp1_board *board = device->board;
    char name[TEXT + 1];
    if (!get_text(request, "obj", name, 1, TEXT)) return BAD_FIELD;
    if (strcmp(name, "key") == 0) return no("E_FORBIDDEN", "a key never leaves");
    source->is_csr = strcmp(name, "csr") == 0;
    source->length = device->csr_length;
    source->object = SPP1_CHAIN;
    if (source->is_csr) return device->csr_length ? DONE : no("E_STATE", "nothing there");
    if (!writable(name, &source->object)) return no("E_ARG", "no such object");
    enum spp1_result result = board->object_length(board->context, source->object, &source->length);
    return result == SPP1_OK ? DONE : result == SPP1_ABSENT ? no("E_STATE", "nothing there") : failure(result);
}

static enum spp1_result source_read(
    struct spp1_device *device, const struct source *source, size_t offset, uint8_t *out, size_t length
) {
    if (!source->is_csr) return device->board->object_read(device->board->context, source->object, offset, out, length);
    memcpy(out, device->csr + offset, length);
    return SPP1_OK;
}

static struct answer read_object(struct spp1_device *device, const struct request *request, struct spp1_frame *reply) {
    uint8_t piece[MOST_CHUNK];
    uint64_t offset = 0, wanted = 0;
    struct source source;
    if (!get_number(request, "off", 0, MAX_SEQUENCE, &offset) || !get_number(request, "n", 1, MOST_CHUNK, &wanted))
        return BAD_FIELD;
    struct answer answer = source_of(device, request, &source);
    if (answer.code) return answer;
    if (offset > source.length) return no("E_ARG", "off is beyond the end");
    if (wanted > source.length - offset) wanted = source.length - offset;
    enum spp1_result result = wanted ? source_read(device, &source, (size_t)offset, piece, (size_t)wanted) : SPP1_OK;
    if (result != SPP1_OK) return failure(result);
    put_number_field(reply, "off", offset);
    put_blob_field(reply, "b64", piece, (size_t)wanted);
    return DONE;
}

static struct answer hash_object(struct spp1_device *device, const struct request *request, struct spp1_frame *reply) {
    uint8_t piece[64], digest[32];
    struct spp1_sha256 hash;
    struct source source;
    struct answer answer = source_of(device, request, &source);
    if (answer.code) return answer;
    spp1_sha256_start(&hash);
    for (size_t offset = 0; offset < source.length;) {
        size_t length = source.length - offset < sizeof piece ? source.length - offset : sizeof piece;
        enum spp1_result result = source_read(device, &source, offset, piece, length);
        if (result != SPP1_OK) return failure(result);
        spp1_sha256_add(&hash, piece, length);
        offset += length;
    }
    spp1_sha256_end(&hash, digest);
    put_digest_field(reply, "sha256", digest);
    return DONE;
}

static struct answer set_time(struct spp1_device *device, const struct request *request, struct spp1_frame *reply) {
    char source[TEXT + 1];
    uint64_t unix_seconds = 0;
    (void)reply;
    if (!get_number(request, "unix", 0, MAX_UNIX, &unix_seconds) || !get_text(request, "src", source, 1, TEXT))
        return BAD_FIELD;
    enum spp1_result result = device->board->move_time_floor(device->board->context, unix_seconds);
    return result == SPP1_OK ? DONE : failure(result);
}

static struct answer reset(struct spp1_device *device, const struct request *request, struct spp1_frame *reply) {
    (void)request;
    (void)reply;
    device->is_resetting = true;
    return DONE;
}

static struct answer seal(struct spp1_device *device, const struct request *request, struct spp1_frame *reply) {
    const struct spp1_board *board = device->board;
    char confirm[TEXT + 1], policy[TEXT + 1];
    enum spp1_seal present;
    if (!get_text(request, "confirm", confirm, 1, TEXT) || !get_text(request, "policy", policy, 1, TEXT))
        return BAD_FIELD;
    bool is_final = strcmp(policy, "final") == 0;
    if (strcmp(confirm, board->identity.serial) != 0) return no("E_ARG", "confirm is not my serial");
    if (!is_final && strcmp(policy, "erasable") != 0) return no("E_ARG", "no such policy");
    enum spp1_result result = board->seal_policy(board->context, &present);
    if (result == SPP1_OK && present == SPP1_NOT_SEALED)
        result = board->seal(board->context, is_final ? SPP1_SEALED_FINAL : SPP1_SEALED_ERASABLE);
    if (result != SPP1_OK) return failure(result);
    put(reply, ",\"sealed\":true");
    return DONE;
}

static struct answer erase(struct spp1_device *device, const struct request *request, struct spp1_frame *reply) {
    const struct spp1_board *board = device->board;
    char confirm[TEXT + 1];
    enum spp1_seal present;
    (void)reply;
    if (!get_text(request, "confirm", confirm, 1, TEXT)) return BAD_FIELD;
    enum spp1_result result = board->seal_policy(board->context, &present);
    if (result == SPP1_OK && present == SPP1_SEALED_FINAL) return no("E_SEALED", "sealed for good");
    if (strcmp(confirm, board->identity.serial) != 0) return no("E_ARG", "confirm is not my serial");
    if (result == SPP1_OK) result = board->erase(board->context);
    if (result != SPP1_OK) return failure(result);
    device->is_open = device->is_verified = false;
    device->csr_length = 0;
    device->committed_txn[0] = 0;
    return DONE;
}

/* The device id stands in `conf`; it fills every `{id}` of the topic. False when it does not fit. */
static bool fill_topic(const char *pattern, const char *id, char *topic, size_t room) {
    size_t length = 0;
    while (*pattern) {
        bool is_id = strncmp(pattern, "{id}", 4) == 0;
        size_t more = is_id ? strlen(id) : 1;
        if (length + more >= room) return false;
        memcpy(topic + length, is_id ? id : pattern, more);
        length += more;
        pattern += is_id ? 4 : 1;
    }
    topic[length] = 0;
    return true;
}

static bool get_device_id(struct spp1_device *device, char id[TEXT + 1]) {
    const struct spp1_board *board = device->board;
    char *conf = (char *)device->stage; /* no transaction is open in VERIFIED */
    size_t length;
    struct request object;
    if (board->object_length(board->context, SPP1_CONF, &length) != SPP1_OK || length > sizeof device->stage ||
        board->object_read(board->context, SPP1_CONF, 0, device->stage, length) != SPP1_OK)
        return false;
    object = (struct request){conf, length};
    return spp1_json_is_object(conf, length) && get_text(&object, "id", id, 1, TEXT);
}

static struct answer net(struct spp1_device *device, const struct request *request, struct spp1_frame *reply) {
    const struct spp1_board *board = device->board;
    char host[TEXT + 1], pattern[TEXT + 1], id[TEXT + 1], topic[4 * TEXT];
    uint64_t port = 0;
    (void)reply;
    if (!get_text(request, "host", host, 1, TEXT) || !get_number(request, "port", 1, 65535, &port) ||
        !get_text(request, "topic", pattern, 1, TEXT))
        return BAD_FIELD;
    if (!get_device_id(device, id)) return no("E_NET", "no device id in conf");
    if (!fill_topic(pattern, id, topic, sizeof topic)) return no("E_ARG", "the topic is too long");
    enum spp1_result result = board->publish(board->context, host, (unsigned)port, id, topic);
    if (result == SPP1_NET_FAILED) return no("E_NET", "no connection, or no acknowledgement");
    return result == SPP1_OK ? DONE : failure(result);
}

/* Which verb is served in which states; the table of section 4. */
#define IN(state) (1u << (state))
#define ALWAYS 63u
#define WITH_KEY (IN(KEYED) | IN(STAGED) | IN(CERTED) | IN(VERIFIED))
static const struct {
    const char *name;
    unsigned states;
    struct answer (*act)(struct spp1_device *, const struct request *, struct spp1_frame *);
} VERBS[SPP1_VERBS] = {
    [SPP1_IDENT] = {"IDENT", ALWAYS, ident},
    [SPP1_STATUS] = {"STATUS", ALWAYS, status},
    [SPP1_KEYGEN] = {"KEYGEN", IN(BLANK) | WITH_KEY, keygen},
    [SPP1_CSR] = {"CSR", WITH_KEY, make_csr},
    [SPP1_PROVE] = {"PROVE", WITH_KEY | IN(SEALED), prove},
    [SPP1_BEGIN] = {"BEGIN", WITH_KEY, begin},
    [SPP1_DATA] = {"DATA", IN(STAGED), data},
    [SPP1_COMMIT] = {"COMMIT", WITH_KEY, commit},
    [SPP1_READ] = {"READ", IN(BLANK) | WITH_KEY, read_object},
    [SPP1_HASH] = {"HASH", ALWAYS, hash_object},
    [SPP1_TIME] = {"TIME", IN(BLANK) | WITH_KEY, set_time},
    [SPP1_RESET] = {"RESET", IN(BLANK) | WITH_KEY, reset},
    [SPP1_SEAL] = {"SEAL", IN(VERIFIED) | IN(SEALED), seal},
    [SPP1_ERASE] = {"ERASE", ALWAYS, erase},
    [SPP1_CONNECT] = {"CONNECT", IN(VERIFIED), net}, /* only with a network: the capability `net` */
};

/* --- requests, section 3 --- */

static struct answer perform(struct spp1_device *device, const char *name, const struct request *request) {
    enum state state = BLANK;
    for (int i = 0; i < SPP1_VERBS; i++) {
        if (strcmp(name, VERBS[i].name) != 0 || (i == SPP1_CONNECT && !device->board->publish)) continue;
        struct answer answer = state_of(device, &state);
        if (answer.code) return answer;
        if (!(VERBS[i].states & IN(state)))
            return no(state == SEALED ? "E_SEALED" : "E_STATE", "not in this state");
        return VERBS[i].act(device, request, &device->reply);
    }
    return no("E_UNSUPPORTED", "no such verb");
}

static void carry_out(struct spp1_device *device, const char *name, const struct request *request, uint32_t crc) {
    uint32_t sequence = device->sequence;
    frame_start(&device->reply, device->sid_text, sequence, "ok");
    struct answer answer = perform(device, name, request);
    if (answer.code)
        write_refusal(device, &device->reply, device->sid_text, sequence, answer);
    else
        frame_end(&device->reply);
    device->last_sequence = sequence;
    device->last_crc = crc;
    transmit(device, &device->reply);
    if (device->is_resetting) device->board->reset(device->board->context);
}

static void hello(struct spp1_device *device, const char *sid, const struct request *request, uint32_t crc) {
    const struct spp1_board *board = device->board;
    struct spp1_value value;
    uint8_t nonce[16], session[16];
    char station[TEXT + 1];
    size_t length = 0;
    bool is_list = false, has_version = false;
    enum state state = BLANK;
    struct answer answer = DONE;
    if (spp1_json_find(request->json, request->length, "proto", &value))
        has_version = spp1_json_list_has(&value, 1, &is_list);
    if (!is_list || !get_text(request, "station", station, 1, TEXT) ||
        !get_blob(request, "nonce", nonce, sizeof nonce, sizeof nonce, &length))
        answer = BAD_FIELD;
    else if (!has_version)
        answer = no("E_VERSION", "version 1 only");
    else if (device->has_session && memcmp(nonce, device->hello_nonce, sizeof nonce) == 0) {
        board->transmit(board->context, device->hello_reply, device->hello_reply_length);
        return;
    } else if (board->random(board->context, session, sizeof session) != SPP1_OK)
        answer = failure(SPP1_RNG_FAILED);
    else
        answer = state_of(device, &state);
    if (answer.code) {
        refuse_aside(device, sid, device->sequence, answer);
        return;
    }
    memcpy(device->sid, session, sizeof session);
    spp1_base64(session, sizeof session, device->sid_text);
    memcpy(device->hello_nonce, nonce, sizeof nonce);
    device->has_session = true;
    device->line_limit = SPP1_MAX_LINE;
    frame_start(&device->reply, sid, device->sequence, "ok");
    put_number_field(&device->reply, "proto", 1);
    put_text_field(&device->reply, "sid", device->sid_text);
    put_number_field(&device->reply, "max_line", SPP1_MAX_LINE);
    put_number_field(&device->reply, "chunk", MOST_CHUNK);
    put(&device->reply, board->publish ? ",\"caps\":[\"net\"]" : ",\"caps\":[]");
    put_text_field(&device->reply, "state", STATE_NAMES[state]);
    put_blob_field(&device->reply, "boot_id", device->boot_id, sizeof device->boot_id);
    frame_end(&device->reply);
    device->last_sequence = device->sequence;
    device->last_crc = crc;
    device->hello_reply_length = device->reply.length;
    memcpy(device->hello_reply, device->reply.text, device->reply.length); /* at most 226 bytes */
    transmit(device, &device->reply);
}

static void answer_frame(struct spp1_device *device, const struct request *request, uint32_t crc) {
    char sid[TEXT + 1], verb[TEXT + 1];
    uint64_t sequence = 0;
    if (!get_text(request, "s", sid, 0, TEXT) || !get_number(request, "i", 1, MAX_SEQUENCE, &sequence) ||
        !get_text(request, "c", verb, 1, TEXT))
        return; /* addressed to nobody */
    device->sequence = (uint32_t)sequence;
    if (strcmp(verb, "HELLO") == 0) {
        /* HELLO's own `s` is "". One longer than any sid is none, or its reply would not fit into the first line. */
        if (strlen(sid) < sizeof device->sid_text) hello(device, sid, request, crc);
    } else if (!device->has_session || strcmp(sid, device->sid_text) != 0)
        refuse_aside(device, sid, device->sequence, no("E_SESSION", "not this session"));
    else if (sequence < device->last_sequence)
        return;
    else if (sequence == device->last_sequence && crc == device->last_crc)
        transmit(device, &device->reply);
    else if (sequence == device->last_sequence)
        refuse_aside(device, sid, device->sequence, no("E_ARG", "i was used already"));
    else
        carry_out(device, verb, request, crc);
}

/* --- lines, section 1 --- */

static void take_line(struct spp1_device *device) {
    char *line = device->line;
    size_t length = device->line_length;
    uint32_t crc = 0;
    if (length < 4 + 2 + 10 || memcmp(line, "!P1 ", 4) != 0 || memcmp(line + length - 10, " *", 2) != 0) return;
    for (size_t i = length - 8; i < length; i++) {
        const char *digit = line[i] ? strchr("0123456789abcdef", line[i]) : NULL;
        if (!digit) return;
        crc = crc << 4 | (uint32_t)(digit - "0123456789abcdef");
    }
    struct request request = {line + 4, length - 14};
    if (spp1_crc32(request.json, request.length) != crc) return;
    if (spp1_json_is_object(request.json, request.length)) answer_frame(device, &request, crc);
}

void spp1_receive(struct spp1_device *device, const uint8_t *bytes, size_t length) {
    for (; length--; bytes++) {
        if (device->is_resetting) return;
        if (*bytes == '\r') continue;
        if (*bytes != '\n') {
            if (device->line_length < device->line_limit)
                device->line[device->line_length++] = (char)*bytes;
            else
                device->line_too_long = true;
            continue;
        }
        if (!device->line_too_long) take_line(device);
        device->line_length = 0;
        device->line_too_long = false;
    }
}

void spp1_busy(struct spp1_device *device, unsigned ms) {
    struct spp1_frame frame;
    if (ms == 0) return;
    frame_start(&frame, device->sid_text, device->sequence, "busy");
    put_number_field(&frame, "t", ms < 60000 ? ms : 60000);
    frame_end(&frame);
    transmit(device, &frame);
}

enum spp1_result spp1_start(struct spp1_device *device, const struct spp1_board *board) {
    memset(device, 0, sizeof *device);
    device->board = board;
    device->line_limit = FIRST_LINE;
    device->last_error = "";
    return board->random(board->context, device->boot_id, sizeof device->boot_id);
}
