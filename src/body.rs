//! A body that is read whole. Most come in one piece, which then is not copied.

use bytes::{Bytes, BytesMut};

/// What of a body is here.
#[derive(Debug, Default)]
pub struct Pieces {
    first: Bytes,
    more: BytesMut,
}

impl Pieces {
    /// Bytes so far.
    pub fn len(&self) -> usize {
        self.first.len() + self.more.len()
    }

    /// Nothing so far.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The next piece.
    pub fn push(&mut self, piece: Bytes) {
        if self.is_empty() {
            self.first = piece;
        } else {
            self.more.extend_from_slice(&piece);
        }
    }

    /// All of it.
    pub fn whole(self) -> Bytes {
        if self.more.is_empty() {
            return self.first;
        }
        let mut all = BytesMut::with_capacity(self.len());
        all.extend_from_slice(&self.first);
        all.extend_from_slice(&self.more);
        all.freeze()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_should_be_its_pieces_in_their_order() {
        for (pieces, whole) in [
            (&[][..], ""),
            (&["ab"], "ab"),
            (&["", "ab", "", "c", "de"], "abcde"),
        ] {
            let mut body = Pieces::default();
            for piece in pieces {
                body.push(Bytes::from_static(piece.as_bytes()));
            }
            assert_eq!(body.len(), whole.len());
            assert_eq!(body.whole(), whole);
        }
    }

    #[test]
    fn one_piece_should_not_be_copied() {
        let piece = Bytes::from(vec![7; 100]);
        let mut body = Pieces::default();
        body.push(piece.clone());
        assert_eq!(body.whole().as_ptr(), piece.as_ptr());
    }
}
