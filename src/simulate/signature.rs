//! `UserSig`, version 2.0: making it and checking it.
//!
//! A signature is a JSON object, compressed by zlib, in a base64 of its own alphabet; inside is an
//! HMAC-SHA256 over four or five lines of text.

use std::{
    fmt::Write as _,
    io::{Read as _, Write as _},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use flate2::{Compression, read::ZlibDecoder, write::ZlibEncoder};
use hmac::{Hmac, Mac as _};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

/// No honest signature inflates to more; it keeps a hostile one from filling the memory.
const INFLATED_MAX: u64 = 64 * 1024;

/// Makes the `usersig` of `identifier` for the app `sdkappid`. `key` is the app's secret key as the
/// console shows it (its text is the HMAC key); `time` is the moment of signing in Unix seconds and
/// `expire` how many seconds it is good for.
pub fn sign(key: &str, sdkappid: u64, identifier: &str, time: u64, expire: u64) -> String {
    let mut token = Token {
        version: VERSION.into(),
        identifier: identifier.into(),
        sdkappid,
        expire,
        time,
        sig: String::new(),
        userbuf: None,
    };
    token.sig = STANDARD.encode(token.mac(key).finalize().into_bytes());
    token.encode()
}

/// Why a `usersig` is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum SignatureError {
    #[error("the UserSig has expired")]
    Expired,
    #[error("the UserSig cannot be decoded")]
    Malformed,
    #[error("the UserSig was not made with the key of this app")]
    Forged,
    #[error("the identifier is not the one in the UserSig")]
    OtherIdentifier,
    #[error("the sdkappid is not the one in the UserSig")]
    OtherSdkappid,
}

impl SignatureError {
    pub(super) fn code(self) -> i64 {
        match self {
            Self::Expired => 70001,
            Self::Malformed => 70003,
            Self::Forged => 70009,
            Self::OtherIdentifier => 70013,
            Self::OtherSdkappid => 70014,
        }
    }
}

/// Checks in the order of the vendor's own verifier: app, identifier, expiry, HMAC. `now` is in
/// Unix seconds.
pub(super) fn verify(
    key: &str,
    sdkappid: u64,
    identifier: &str,
    usersig: &str,
    now: u64,
) -> Result<(), SignatureError> {
    let token = Token::decode(usersig).ok_or(SignatureError::Malformed)?;
    if token.sdkappid != sdkappid {
        return Err(SignatureError::OtherSdkappid);
    }
    if token.identifier != identifier {
        return Err(SignatureError::OtherIdentifier);
    }
    if now > token.time.saturating_add(token.expire) {
        return Err(SignatureError::Expired);
    }
    let sig = STANDARD
        .decode(&token.sig)
        .map_err(|_| SignatureError::Malformed)?;
    token
        .mac(key)
        .verify_slice(&sig)
        .map_err(|_| SignatureError::Forged)
}

const VERSION: &str = "2.0";

#[derive(Serialize, Deserialize)]
struct Token {
    #[serde(rename = "TLS.ver")]
    version: String,
    #[serde(rename = "TLS.identifier")]
    identifier: String,
    #[serde(rename = "TLS.sdkappid")]
    sdkappid: u64,
    #[serde(rename = "TLS.expire")]
    expire: u64,
    #[serde(rename = "TLS.time")]
    time: u64,
    #[serde(rename = "TLS.sig")]
    sig: String,
    #[serde(rename = "TLS.userbuf", skip_serializing_if = "Option::is_none")]
    userbuf: Option<String>,
}

impl Token {
    fn mac(&self, key: &str) -> Hmac<Sha256> {
        let mut text = format!(
            "TLS.identifier:{}\nTLS.sdkappid:{}\nTLS.time:{}\nTLS.expire:{}\n",
            self.identifier, self.sdkappid, self.time, self.expire
        );
        if let Some(userbuf) = &self.userbuf {
            writeln!(text, "TLS.userbuf:{userbuf}").expect("a String takes every write");
        }
        Hmac::<Sha256>::new_from_slice(key.as_bytes())
            .expect("an HMAC takes a key of any length")
            .chain_update(text)
    }

    fn encode(&self) -> String {
        let json = serde_json::to_vec(self).expect("strings and integers always serialize");
        let mut zlib = ZlibEncoder::new(Vec::new(), Compression::default());
        zlib.write_all(&json).expect("a Vec takes every write");
        let packed = zlib.finish().expect("a Vec takes every write");
        let swap = |letter| match letter {
            '+' => '*',
            '/' => '-',
            '=' => '_',
            other => other,
        };
        STANDARD.encode(packed).chars().map(swap).collect()
    }

    fn decode(usersig: &str) -> Option<Self> {
        let swap = |letter| match letter {
            '*' => Some('+'),
            '-' => Some('/'),
            '_' => Some('='),
            '+' | '/' | '=' => None,
            other => Some(other),
        };
        let base64: String = usersig.chars().map(swap).collect::<Option<_>>()?;
        let packed = STANDARD.decode(base64).ok()?;
        let mut json = Vec::new();
        ZlibDecoder::new(packed.as_slice())
            .take(INFLATED_MAX)
            .read_to_end(&mut json)
            .ok()?;
        let token: Self = serde_json::from_slice(&json).ok()?;
        (token.version == VERSION).then_some(token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "5bd2850fff3ecb11d7c805251c51ee463a25727bddc2385f3fa8bfee1bb93b5e";
    const APP: u64 = 1_400_000_000;
    const SIGNED: u64 = 1_700_000_000;

    fn token() -> Token {
        Token::decode(&sign(KEY, APP, "xiaojun", SIGNED, 86400)).unwrap()
    }

    #[test]
    fn signature_should_match_the_published_vector() {
        assert_eq!(token().sig, "SNF4FmVCPucoXsBOpbVF3fFCf57JPm0ezZ1jeVILlVc=");
    }

    #[test]
    fn signature_with_a_userbuf_should_match_the_published_vector() {
        let mut token = token();
        token.userbuf = Some("YWJj".into());
        token.sig = STANDARD.encode(token.mac(KEY).finalize().into_bytes());
        assert_eq!(token.sig, "Oab3vXglY45Pcxz+SSjhdxBWuhTAxVhxYLfvVjGhOJ0=");
        assert_eq!(verify(KEY, APP, "xiaojun", &token.encode(), SIGNED), Ok(()));
    }

    #[test]
    fn signature_should_use_its_own_alphabet() {
        for time in 0..200 {
            let usersig = sign(KEY, APP, "admin", time, 1);
            assert!(!usersig.contains(['+', '/', '=']), "{usersig}");
        }
    }

    #[test]
    fn verifier_should_name_each_fault() {
        use SignatureError::{Expired, Forged, Malformed, OtherIdentifier, OtherSdkappid};
        let good = sign(KEY, APP, "xiaojun", SIGNED, 86400);
        let cut = &good[..good.len() / 2];
        let other_version = {
            let mut token = token();
            token.version = "1.0".into();
            token.encode()
        };
        let last = SIGNED + 86400;
        for (key, app, identifier, usersig, now, expected) in [
            (KEY, APP, "xiaojun", good.as_str(), SIGNED, Ok(())),
            (KEY, APP, "xiaojun", &good, last, Ok(())),
            (KEY, APP, "xiaojun", &good, last + 1, Err(Expired)),
            (KEY, APP, "xiaoli", &good, SIGNED, Err(OtherIdentifier)),
            (KEY, APP + 1, "xiaojun", &good, SIGNED, Err(OtherSdkappid)),
            ("other", APP, "xiaojun", &good, SIGNED, Err(Forged)),
            (KEY, APP, "xiaojun", cut, SIGNED, Err(Malformed)),
            (KEY, APP, "xiaojun", "xxx", SIGNED, Err(Malformed)),
            (KEY, APP, "xiaojun", "", SIGNED, Err(Malformed)),
            (KEY, APP, "xiaojun", &other_version, SIGNED, Err(Malformed)),
        ] {
            assert_eq!(verify(key, app, identifier, usersig, now), expected);
        }
    }
}
