/* The hooks on a POSIX system, so that the reference can be run against a station: the line is a pseudo-terminal, flash
 * is a file, keys are OpenSSL's. A demonstration: the private key lies in that file in the clear.
 *
 *     ./spp1-device --link dev0 --state dev0.flash --serial SN-0001 [--net]
 */
#define _XOPEN_SOURCE 700
#include <errno.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <openssl/rand.h>
#include <openssl/x509.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <termios.h>
#include <unistd.h>

#include "net_posix.h"
#include "spp1.h"

#define MAGIC 0x53505031u
#define READ_BYTES 256

struct flash { /* what survives a power cut; written whole or not at all */
    uint32_t magic;
    uint32_t key_length;
    uint8_t key[256]; /* PKCS#8 or traditional DER of a P-256 key */
    uint32_t lengths[3];
    uint8_t objects[3][SPP1_STAGE_BYTES];
    uint32_t seal;
    uint64_t time_floor;
};

struct device {
    const char *state_file;
    int line;
    bool is_reset;
};

static struct flash image; /* one at a time: read anew for every hook */
static volatile sig_atomic_t is_ending;

static enum spp1_result read_flash(const struct device *device) {
    int file = open(device->state_file, O_RDONLY | O_CLOEXEC);
    memset(&image, 0, sizeof image);
    if (file < 0) return errno == ENOENT ? SPP1_OK : SPP1_FLASH_FAILED;
    ssize_t got = read(file, &image, sizeof image);
    close(file);
    bool is_ours = got == (ssize_t)sizeof image && image.magic == MAGIC && image.key_length <= sizeof image.key;
    for (int i = 0; i < 3; i++) is_ours = is_ours && image.lengths[i] <= SPP1_STAGE_BYTES;
    return is_ours ? SPP1_OK : SPP1_FLASH_FAILED;
}

static enum spp1_result write_flash(const struct device *device) {
    char name[4096];
    image.magic = MAGIC;
    if (snprintf(name, sizeof name, "%s.new", device->state_file) >= (int)sizeof name) return SPP1_FLASH_FAILED;
    int file = open(name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (file < 0) return SPP1_FLASH_FAILED;
    bool is_written = write(file, &image, sizeof image) == (ssize_t)sizeof image && fsync(file) == 0;
    is_written = close(file) == 0 && is_written;
    return is_written && rename(name, device->state_file) == 0 ? SPP1_OK : SPP1_FLASH_FAILED;
}

/* --- the hooks --- */

static enum spp1_result board_random(void *context, uint8_t *out, size_t length) {
    (void)context;
    return RAND_bytes(out, (int)length) == 1 ? SPP1_OK : SPP1_RNG_FAILED;
}

static EVP_PKEY *key_in_flash(void) {
    const uint8_t *at = image.key;
    return d2i_AutoPrivateKey(NULL, &at, (long)image.key_length);
}

static enum spp1_result board_public_key(void *context, uint8_t point[65]) {
    if (read_flash(context) != SPP1_OK) return SPP1_FLASH_FAILED;
    if (image.key_length == 0) return SPP1_ABSENT;
    EVP_PKEY *key = key_in_flash();
    size_t length = 0;
    bool is_read = key && EVP_PKEY_get_octet_string_param(key, "pub", point, 65, &length) == 1 && length == 65;
    EVP_PKEY_free(key);
    return is_read ? SPP1_OK : SPP1_FLASH_FAILED;
}

static enum spp1_result board_new_key(void *context, const uint8_t *seed, size_t length) {
    if (read_flash(context) != SPP1_OK) return SPP1_FLASH_FAILED;
    RAND_add(seed, (int)length, 0); /* mixed in, and counted as worth nothing */
    EVP_PKEY *key = EVP_EC_gen("P-256");
    uint8_t *at = image.key;
    int size = key ? i2d_PrivateKey(key, NULL) : -1;
    if (size > 0 && size <= (int)sizeof image.key) image.key_length = (uint32_t)i2d_PrivateKey(key, &at);
    EVP_PKEY_free(key);
    if (size <= 0 || size > (int)sizeof image.key) return SPP1_RNG_FAILED;
    image.lengths[SPP1_CHAIN] = 0; /* it certifies the key that goes */
    return write_flash(context);
}

static enum spp1_result board_sign(void *context, const uint8_t digest[32], uint8_t signature[72], size_t *length) {
    if (read_flash(context) != SPP1_OK) return SPP1_FLASH_FAILED;
    EVP_PKEY *key = key_in_flash();
    EVP_PKEY_CTX *signer = key ? EVP_PKEY_CTX_new(key, NULL) : NULL;
    *length = 72;
    bool is_signed = signer && EVP_PKEY_sign_init(signer) == 1 &&
                     EVP_PKEY_sign(signer, signature, length, digest, 32) == 1;
    EVP_PKEY_CTX_free(signer);
    EVP_PKEY_free(key);
    return is_signed ? SPP1_OK : SPP1_FLASH_FAILED;
}

static enum spp1_result board_object_length(void *context, enum spp1_object object, size_t *length) {
    if (read_flash(context) != SPP1_OK) return SPP1_FLASH_FAILED;
    *length = image.lengths[object];
    return *length ? SPP1_OK : SPP1_ABSENT;
}

static enum spp1_result board_object_read(
    void *context, enum spp1_object object, size_t offset, uint8_t *out, size_t length
) {
    if (read_flash(context) != SPP1_OK || offset + length > image.lengths[object]) return SPP1_FLASH_FAILED;
    memcpy(out, image.objects[object] + offset, length);
    return SPP1_OK;
}

static enum spp1_result board_object_write(
    void *context, enum spp1_object object, const uint8_t *content, size_t length
) {
    if (read_flash(context) != SPP1_OK) return SPP1_FLASH_FAILED;
    memcpy(image.objects[object], content, length);
    image.lengths[object] = (uint32_t)length;
    return write_flash(context);
}

static enum spp1_result board_seal_policy(void *context, enum spp1_seal *policy) {
    if (read_flash(context) != SPP1_OK) return SPP1_FLASH_FAILED;
    *policy = (enum spp1_seal)image.seal;
    return SPP1_OK;
}

static enum spp1_result board_seal(void *context, enum spp1_seal policy) {
    if (read_flash(context) != SPP1_OK) return SPP1_FLASH_FAILED;
    image.seal = policy;
    return write_flash(context);
}

static enum spp1_result board_erase(void *context) {
    if (read_flash(context) != SPP1_OK) return SPP1_FLASH_FAILED;
    uint64_t time_floor = image.time_floor;
    memset(&image, 0, sizeof image);
    image.time_floor = time_floor;
    return write_flash(context);
}

static enum spp1_result board_move_time_floor(void *context, uint64_t unix_seconds) {
    if (read_flash(context) != SPP1_OK) return SPP1_FLASH_FAILED;
    if (unix_seconds <= image.time_floor) return SPP1_OK;
    image.time_floor = unix_seconds;
    return write_flash(context);
}

static enum spp1_result board_publish(
    void *context, const char *host, unsigned port, const char *id, const char *topic
) {
    if (read_flash(context) != SPP1_OK) return SPP1_FLASH_FAILED;
    struct net_credentials own = {
        .key = key_in_flash(),
        .chain = image.objects[SPP1_CHAIN],
        .chain_length = image.lengths[SPP1_CHAIN],
        .ca = image.objects[SPP1_CA],
        .ca_length = image.lengths[SPP1_CA],
    };
    bool is_acknowledged = own.key && net_publish(&own, host, port, id, topic);
    EVP_PKEY_free(own.key);
    return is_acknowledged ? SPP1_OK : SPP1_NET_FAILED;
}

static void board_transmit(void *context, const char *bytes, size_t length) {
    const struct device *device = context;
    while (length > 0) {
        ssize_t sent = write(device->line, bytes, length);
        if (sent < 0 && errno != EINTR) return; /* the host is gone: its timer will tell it */
        if (sent > 0) bytes += sent, length -= (size_t)sent;
    }
}

static void board_reset(void *context) {
    struct device *device = context;
    device->is_reset = true;
}

/* --- the program --- */

static void on_signal(int number) {
    (void)number;
    is_ending = 1;
}

/* A pseudo-terminal whose other end stands at `link`. It is held open here, so that a host may come and go. */
static int open_line(const char *link, int *other_end) {
    int line = posix_openpt(O_RDWR | O_NOCTTY);
    struct termios raw;
    if (line < 0 || grantpt(line) != 0 || unlockpt(line) != 0) return -1;
    const char *name = ptsname(line);
    *other_end = name ? open(name, O_RDWR | O_NOCTTY) : -1;
    if (*other_end < 0 || tcgetattr(*other_end, &raw) != 0) return -1;
    raw.c_iflag = raw.c_oflag = raw.c_lflag = 0;
    raw.c_cflag = CS8 | CREAD | CLOCAL;
    if (tcsetattr(*other_end, TCSANOW, &raw) != 0) return -1;
    return symlink(name, link) == 0 ? line : -1;
}

static void serve(struct device *device, struct spp1_device *machine, const struct spp1_board *board) {
    uint8_t bytes[READ_BYTES];
    struct pollfd ready = {.fd = device->line, .events = POLLIN};
    while (!is_ending) {
        if (device->is_reset && spp1_start(machine, board) != SPP1_OK) return;
        device->is_reset = false;
        if (poll(&ready, 1, -1) < 0) continue; /* a signal */
        ssize_t got = read(device->line, bytes, sizeof bytes);
        if (got > 0) spp1_receive(machine, bytes, (size_t)got);
    }
}

int main(int count, char **arguments) {
    static struct spp1_device machine;
    struct device device = {.is_reset = true};
    const char *link = NULL, *serial = "SN-0001";
    struct sigaction end = {.sa_handler = on_signal};
    int other_end = -1;
    bool has_network = false;
    for (int i = 1; i < count; i++) {
        has_network = has_network || strcmp(arguments[i], "--net") == 0;
        if (i + 1 == count) break;
        if (strcmp(arguments[i], "--link") == 0) link = arguments[i + 1];
        if (strcmp(arguments[i], "--state") == 0) device.state_file = arguments[i + 1];
        if (strcmp(arguments[i], "--serial") == 0) serial = arguments[i + 1];
    }
    if (!link || !device.state_file) {
        fputs("usage: spp1-device --link PATH --state FILE [--serial SN-0001] [--net]\n", stderr);
        return 2;
    }
    struct spp1_board board = {
        .context = &device,
        .identity = {"spp1-device-c", "1", "1.0.0", serial, serial, "openssl"},
        .random = board_random,
        .public_key = board_public_key,
        .new_key = board_new_key,
        .sign = board_sign,
        .object_length = board_object_length,
        .object_read = board_object_read,
        .object_write = board_object_write,
        .seal_policy = board_seal_policy,
        .seal = board_seal,
        .erase = board_erase,
        .move_time_floor = board_move_time_floor,
        .publish = has_network ? board_publish : NULL,
        .transmit = board_transmit,
        .reset = board_reset,
    };
    sigaction(SIGTERM, &end, NULL);
    sigaction(SIGINT, &end, NULL);
    signal(SIGPIPE, SIG_IGN); /* a gateway that hangs up is an answer */
    device.line = open_line(link, &other_end);
    if (device.line < 0) {
        fprintf(stderr, "error: cannot put a pseudo-terminal at %s: %s\n", link, strerror(errno));
        return 1;
    }
    serve(&device, &machine, &board);
    unlink(link);
    return 0;
}
