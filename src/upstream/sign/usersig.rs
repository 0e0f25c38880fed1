//! How a `usersig` is made (version 2.0, vendor page 1047/34385).
//!
//! Four lines of text get an HMAC-SHA256; a JSON object of what they say and that HMAC is
//! compressed by zlib and written in a base64 of its own.

use std::io::Write as _;

use base64::{
    Engine as _,
    alphabet::Alphabet,
    engine::{GeneralPurpose, general_purpose},
};
use flate2::{Compression, write::ZlibEncoder};
use hmac::{Hmac, Mac as _};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Serialize;
use sha2::Sha256;

#[derive(Serialize)]
struct Envelope<'a> {
    #[serde(rename = "TLS.ver")]
    version: &'a str,
    #[serde(rename = "TLS.identifier")]
    identifier: &'a str,
    #[serde(rename = "TLS.sdkappid")]
    sdkappid: u64,
    #[serde(rename = "TLS.expire")]
    expire: u64,
    #[serde(rename = "TLS.time")]
    time: u64,
    #[serde(rename = "TLS.sig")]
    sig: &'a str,
}

/// The `usersig` of `identifier` for the app `sdkappid`, good for `expire` seconds from `time` on,
/// which is in Unix seconds. The text of `key` is the HMAC key, not what its digits stand for.
pub(super) fn usersig(
    key: &SecretString,
    sdkappid: u64,
    identifier: &str,
    time: u64,
    expire: u64,
) -> String {
    let sig = mac(key, sdkappid, identifier, time, expire);
    let envelope = Envelope {
        version: "2.0",
        identifier,
        sdkappid,
        expire,
        time,
        sig: &sig,
    };
    let json = serde_json::to_vec(&envelope).expect("strings and numbers serialize");
    let mut zlib = ZlibEncoder::new(Vec::new(), Compression::default());
    let packed = zlib.write_all(&json).and_then(|()| zlib.finish());
    encode(&packed.expect("memory takes every byte"))
}

fn mac(key: &SecretString, sdkappid: u64, identifier: &str, time: u64, expire: u64) -> String {
    let text = format!(
        "TLS.identifier:{identifier}\nTLS.sdkappid:{sdkappid}\nTLS.time:{time}\n\
         TLS.expire:{expire}\n"
    );
    let mac = Hmac::<Sha256>::new_from_slice(key.expose_secret().as_bytes())
        .expect("an HMAC takes a key of any length")
        .chain_update(text);
    general_purpose::STANDARD.encode(mac.finalize().into_bytes())
}

/// Base64 with `*`, `-` and `_` for `+`, `/` and the padding.
fn encode(bytes: &[u8]) -> String {
    let alphabet =
        Alphabet::new("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789*-")
            .expect("64 different letters");
    let engine = GeneralPurpose::new(&alphabet, general_purpose::PAD);
    engine.encode(bytes).replace('=', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mac_should_be_that_of_the_published_vector() {
        let key = "5bd2850fff3ecb11d7c805251c51ee463a25727bddc2385f3fa8bfee1bb93b5e";
        assert_eq!(
            mac(&key.into(), 1_400_000_000, "xiaojun", 1_700_000_000, 86_400),
            "SNF4FmVCPucoXsBOpbVF3fFCf57JPm0ezZ1jeVILlVc="
        );
    }

    #[test]
    fn letters_should_be_those_of_the_vendor() {
        assert_eq!(encode(&[0xfb, 0xef, 0xff]), "**--");
        assert_eq!(encode(&[0xff]), "-w__");
        assert_eq!(encode(b"ab"), "YWI_");
    }
}
