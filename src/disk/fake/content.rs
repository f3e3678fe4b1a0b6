//! The bytes of a file in memory: blocks that copies share until one of them writes, so that a
//! state of a whole disk is cloned for next to nothing. Blocks of zeros are not kept.
//!
//! *Invariant*: bytes beyond `len` are zeros in every block.

use std::sync::Arc;

const BLOCK_BYTES: usize = 4096;

type Block = [u8; BLOCK_BYTES];

/// What a file holds.
#[derive(Clone, Default)]
pub(super) struct Content {
    len: usize,
    blocks: Vec<Option<Arc<Block>>>,
}

/// What a file holds that is not there.
pub(super) static EMPTY: Content = Content { len: 0, blocks: Vec::new() };

impl Content {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Reads what there is from `offset` on; returns how much that was.
    pub(super) fn read(&self, offset: usize, out: &mut [u8]) -> usize {
        let start = offset.min(self.len);
        let got = out.len().min(self.len - start);
        let mut done = 0;
        while done < got {
            let (block, within) = place(start + done);
            let n = (BLOCK_BYTES - within).min(got - done);
            let into = &mut out[done..done + n];
            match &self.blocks[block] {
                Some(bytes) => into.copy_from_slice(&bytes[within..within + n]),
                None => into.fill(0),
            }
            done += n;
        }
        got
    }

    /// Writes, growing where needed.
    pub(super) fn write(&mut self, offset: usize, data: &[u8]) {
        if self.len < offset + data.len() {
            self.resize(offset + data.len());
        }
        let mut done = 0;
        while done < data.len() {
            let (block, within) = place(offset + done);
            let n = (BLOCK_BYTES - within).min(data.len() - done);
            let from = &data[done..done + n];
            match &mut self.blocks[block] {
                None if from.iter().all(|byte| *byte == 0) => {}
                bytes => {
                    let bytes = bytes.get_or_insert_with(|| Arc::new([0; BLOCK_BYTES]));
                    Arc::make_mut(bytes)[within..within + n].copy_from_slice(from);
                }
            }
            done += n;
        }
    }

    /// Sets the length; growth reads as zeros.
    pub(super) fn resize(&mut self, len: usize) {
        self.len = len;
        self.blocks.resize(len.div_ceil(BLOCK_BYTES), None);
        let (_, within) = place(len);
        if within > 0
            && let Some(Some(last)) = self.blocks.last_mut()
        {
            Arc::make_mut(last)[within..].fill(0);
        }
    }

    pub(super) fn to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len];
        self.read(0, &mut bytes);
        bytes
    }
}

impl From<&[u8]> for Content {
    fn from(bytes: &[u8]) -> Content {
        let mut content = Content::default();
        content.write(0, bytes);
        content
    }
}

fn place(offset: usize) -> (usize, usize) {
    (offset / BLOCK_BYTES, offset % BLOCK_BYTES)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::Content;

    proptest! {
        /// It is a `Vec<u8>`, and so is each of its copies.
        #[test]
        fn it_is_bytes(
            calls in prop::collection::vec((0..20_000_usize, 0..9_000_usize, any::<u8>()), 1..20)
        ) {
            let (mut content, mut model) = (Content::default(), Vec::new());
            let mut copies = Vec::new();
            for (offset, len, byte) in calls {
                copies.push((content.clone(), model.clone()));
                if byte % 5 == 0 {
                    content.resize(offset);
                    model.resize(offset, 0);
                } else {
                    content.write(offset, &vec![byte % 3; len]);
                    model.resize(model.len().max(offset + len), 0);
                    model[offset..offset + len].fill(byte % 3);
                }
                copies.push((content.clone(), model.clone()));
            }
            for (content, model) in copies {
                prop_assert_eq!(content.to_vec(), &model[..]);
                prop_assert_eq!(Content::from(&model[..]).to_vec(), model);
            }
        }
    }
}
