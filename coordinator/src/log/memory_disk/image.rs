//! What a crash leaves of writes that were not synced.

/// The images that a crash can leave, of what was not synced. Beyond these lies only [`crash`](super::MemoryDisk::crash),
/// where the caller decides for every sector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CrashImage {
    /// No unsynced sector arrived, and no unsynced name.
    Nothing,
    /// Everything arrived, though nobody was told.
    Everything,
    /// A random part of the sectors and names arrived; where one was written twice, any of its contents.
    Subset(u64),
    /// The sectors arrived in their order up to one that was torn within: the rest is as it was. Unsynced names arrived.
    Torn(u64),
}

/// Decides what arrived.
pub(super) trait Survival {
    /// Whether a creation or removal of a name arrived.
    fn has_name(&mut self) -> bool;

    /// Turns the content of a sector on the platter into what is there after the crash.
    fn sector(&mut self, platter: &mut [u8], written: &[Vec<u8>]);
}

/// The caller decides.
pub(super) struct Chosen<F>(pub(super) F);

impl<F: FnMut(usize) -> usize> Survival for Chosen<F> {
    fn has_name(&mut self) -> bool {
        self.0(2) == 1
    }

    fn sector(&mut self, platter: &mut [u8], written: &[Vec<u8>]) {
        if let Some(picked) = self.0(written.len() + 1).checked_sub(1) {
            platter.copy_from_slice(&written[picked]);
        }
    }
}

/// One of the images.
pub(super) struct Imaged {
    image: CrashImage,
    /// The state of a stream of numbers (SplitMix64).
    state: u64,
    /// Of a torn write: how many sectors arrive whole before the torn one.
    whole_count: u64,
}

impl Imaged {
    pub(super) fn new(image: CrashImage, sector_count: usize) -> Self {
        let (CrashImage::Subset(state) | CrashImage::Torn(state)) = image else {
            return Self {
                image,
                state: 0,
                whole_count: 0,
            };
        };
        let mut own = Self {
            image,
            state,
            whole_count: 0,
        };
        own.whole_count = own.below(sector_count.max(1)) as u64;
        own
    }

    fn below(&mut self, bound: usize) -> usize {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % bound as u64).expect("below a usize")
    }
}

impl Survival for Imaged {
    fn has_name(&mut self) -> bool {
        match self.image {
            CrashImage::Nothing => false,
            CrashImage::Everything | CrashImage::Torn(_) => true,
            CrashImage::Subset(_) => self.below(2) == 1,
        }
    }

    fn sector(&mut self, platter: &mut [u8], written: &[Vec<u8>]) {
        let Some(newest) = written.last() else { return };
        match self.image {
            CrashImage::Nothing => {}
            CrashImage::Everything => platter.copy_from_slice(newest),
            CrashImage::Subset(_) => {
                if let Some(picked) = self.below(written.len() + 1).checked_sub(1) {
                    platter.copy_from_slice(&written[picked]);
                }
            }
            CrashImage::Torn(_) => {
                let arrived = match self.whole_count {
                    0 => self.below(platter.len()),
                    _ => platter.len(),
                };
                platter[..arrived].copy_from_slice(&newest[..arrived]);
                // Behind the torn sector nothing arrives.
                match self.whole_count.checked_sub(1) {
                    Some(left) => self.whole_count = left,
                    None => self.image = CrashImage::Nothing,
                }
            }
        }
    }
}
