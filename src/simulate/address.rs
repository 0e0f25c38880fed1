//! The public part of a call: method, path and query, before any command sees it.

use hyper::Method;

use super::{answer::Refusal, settings::Settings, signature};

/// Who calls, as the query says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Caller {
    pub(super) sdkappid: String,
    pub(super) identifier: String,
    pub(super) usersig: String,
    random: Option<String>,
    contenttype: Option<String>,
}

impl Caller {
    /// Reads the query. Of a name that comes twice the first counts; names are case-sensitive.
    pub(super) fn read(query: &str) -> Self {
        let find = |wanted: &str| {
            query.split('&').find_map(|pair| {
                let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                (name == wanted).then(|| percent_decode(value))
            })
        };
        Self {
            sdkappid: find("sdkappid").unwrap_or_default(),
            identifier: find("identifier").unwrap_or_default(),
            usersig: find("usersig").unwrap_or_default(),
            random: find("random"),
            contenttype: find("contenttype"),
        }
    }

    /// Checks the public rules of the URL and then the signature; `now` is in Unix seconds.
    /// `random` and `contenttype` may be absent, but not wrong (60002).
    pub(super) fn check(
        &self,
        settings: &Settings,
        method: &Method,
        now: u64,
    ) -> Result<(), Refusal> {
        if method != Method::POST {
            return Err(Refusal::new(60009, "the method is not POST"));
        }
        if self.sdkappid.is_empty() {
            return Err(Refusal::new(60012, "sdkappid is missing"));
        }
        let Ok(sdkappid) = self.sdkappid.parse::<u64>() else {
            return Err(Refusal::new(60006, "sdkappid is not a number"));
        };
        if self.identifier.is_empty() {
            return Err(Refusal::new(60004, "identifier is missing"));
        }
        if self.usersig.is_empty() {
            return Err(Refusal::new(70002, "usersig is empty"));
        }
        if matches!(&self.random, Some(random) if random.parse::<u32>().is_err()) {
            return Err(Refusal::new(60002, "random is not a 32-bit number"));
        }
        if matches!(self.contenttype.as_deref(), Some(kind) if kind != "json") {
            return Err(Refusal::new(60002, "contenttype is not json"));
        }
        match &settings.key {
            Some(key) => signature::verify(key, sdkappid, &self.identifier, &self.usersig, now)
                .map_err(|error| Refusal::new(error.code(), error.to_string())),
            None if self.usersig.starts_with("forged") => {
                let error = signature::SignatureError::Forged;
                Err(Refusal::new(error.code(), error.to_string()))
            }
            None => Ok(()),
        }
    }
}

/// What is not a valid escape stays as it is; so does `+`, which no field here needs as a space.
fn percent_decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let escaped = match after {
            [high, low, ..] if first == b'%' => hex(*high).zip(hex(*low)),
            _ => None,
        };
        if let Some((high, low)) = escaped {
            bytes.push(high * 16 + low);
            rest = &after[2..];
        } else {
            bytes.push(first);
            rest = after;
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn hex(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(settings: &Settings, query: &str) -> i64 {
        match Caller::read(query).check(settings, &Method::POST, 1000) {
            Ok(()) => 0,
            Err(refusal) => refusal.code,
        }
    }

    #[test]
    fn each_rule_of_the_url_should_have_its_code() {
        for (query, code) in [
            (
                "sdkappid=1&identifier=a&usersig=x&random=4294967295&contenttype=json",
                0,
            ),
            ("sdkappid=1&identifier=a&usersig=x", 0),
            ("identifier=a&usersig=x", 60012),
            ("sdkappid=&identifier=a&usersig=x", 60012),
            ("SdkAppId=1&identifier=a&usersig=x", 60012),
            ("sdkappid=1a&identifier=a&usersig=x", 60006),
            ("sdkappid=-1&identifier=a&usersig=x", 60006),
            ("sdkappid=1&usersig=x", 60004),
            ("sdkappid=1&identifier=&usersig=x", 60004),
            ("sdkappid=1&identifier=a", 70002),
            ("sdkappid=1&identifier=a&usersig=", 70002),
            ("sdkappid=1&identifier=a&usersig=forged-1", 70009),
            ("sdkappid=1&identifier=a&usersig=x&random=4294967296", 60002),
            ("sdkappid=1&identifier=a&usersig=x&contenttype=xml", 60002),
            ("", 60012),
        ] {
            assert_eq!(check(&Settings::default(), query), code, "{query}");
        }
    }

    #[test]
    fn method_should_be_post() {
        let caller = Caller::read("sdkappid=1&identifier=a&usersig=x");
        let refusal = caller.check(&Settings::default(), &Method::GET, 0);
        assert_eq!(refusal.unwrap_err().code, 60009);
    }

    #[test]
    fn signature_should_be_checked_when_there_is_a_key() {
        let settings = Settings {
            key: Some("secret".into()),
            ..Settings::default()
        };
        let good = signature::sign("secret", 1, "admin", 900, 100);
        let escaped = good.replace('*', "%2A").replace('_', "%5f");
        let late = signature::sign("secret", 1, "admin", 900, 99);
        let forged = signature::sign("other", 1, "admin", 900, 100);
        for (query, code) in [
            (format!("sdkappid=1&identifier=admin&usersig={good}"), 0),
            (format!("sdkappid=1&identifier=admin&usersig={escaped}"), 0),
            (format!("sdkappid=1&identifier=admin&usersig={late}"), 70001),
            (
                format!("sdkappid=1&identifier=admin&usersig={forged}"),
                70009,
            ),
            (format!("sdkappid=1&identifier=other&usersig={good}"), 70013),
            (format!("sdkappid=2&identifier=admin&usersig={good}"), 70014),
            ("sdkappid=1&identifier=admin&usersig=xxx".into(), 70003),
        ] {
            assert_eq!(check(&settings, &query), code, "{query}");
        }
    }

    #[test]
    fn escapes_should_be_decoded_and_anything_else_kept() {
        for (text, expected) in [
            ("%40TGS%23a", "@TGS#a"),
            ("%e4%BD%a0", "你"),
            ("a+b%2", "a+b%2"),
            ("%zz%4", "%zz%4"),
            ("%é", "%é"),
        ] {
            assert_eq!(percent_decode(text), expected);
        }
    }
}
