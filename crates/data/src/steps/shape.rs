//! Steps on shapes: layout, reshape, lengths of axes.

use optix_ir::element_count;

use super::state::{State, Value};
use super::{MAX_ELEMENTS, Order};

impl State<'_> {
    pub(super) fn layout(&mut self, order: Order) -> Result<(), String> {
        let shape = self.value.shape().to_vec();
        let first = order == Order::Nchw;
        match *shape.as_slice() {
            [height, width] => {
                self.set_shape(if first { vec![1, height, width] } else { vec![height, width, 1] })?;
            }
            [..] if shape.len() != 3 => {
                return Err(format!("it needs a sample of 2 or 3 axes, this one has shape {shape:?}"));
            }
            _ if first == self.channels_first => {}
            [a, b, c] => {
                // Seen as a matrix, the channel axis is its rows or its columns: moving it is a transpose.
                let (rows, columns, moved) = if first {
                    (a.saturating_mul(b), c, vec![c, a, b])
                } else {
                    (a, b.saturating_mul(c), vec![b, c, a])
                };
                self.value = match self.take() {
                    Value::Floats(_, values) => Value::Floats(moved, transpose(&values, rows, columns)),
                    Value::Tensor(tensor) => {
                        let size = tensor.dtype().bits() / 8;
                        if tensor.dtype().is_packed() || size == 0 {
                            return Err(format!(
                                "{} elements cannot be moved: cast them first",
                                tensor.dtype()
                            ));
                        }
                        let elements: Vec<&[u8]> = tensor.bytes().chunks_exact(size).collect();
                        let bytes = transpose(&elements, rows, columns).concat();
                        Value::of_bytes(tensor.dtype(), moved, bytes)?
                    }
                };
            }
            _ => {}
        }
        self.channels_first = first;
        Ok(())
    }

    /// Makes an axis exactly so long.
    pub(super) fn pad_or_trim(&mut self, length: usize, axis: usize, fill: f64) -> Result<(), String> {
        let shape = self.value.shape().to_vec();
        let Some(&found) = shape.get(axis) else {
            return Err(format!("there is no axis {axis} in a sample of shape {shape:?}"));
        };
        let mut wanted = shape.clone();
        if let Some(slot) = wanted.get_mut(axis) {
            *slot = length;
        }
        if element_count(&wanted).is_none_or(|count| count > MAX_ELEMENTS) {
            return Err(format!("a shape of {wanted:?} is beyond what a sample may have"));
        }
        let inner = shape.iter().skip(axis.saturating_add(1)).product::<usize>();
        let rows = (found.saturating_mul(inner), length.saturating_mul(inner));
        self.value = match self.take() {
            Value::Floats(_, values) => Value::Floats(wanted, fit_rows(&values, rows, &[fill as f32])),
            Value::Tensor(tensor) => {
                let one = super::image::element(tensor.dtype(), fill)?;
                let rows = (rows.0.saturating_mul(one.len()), rows.1.saturating_mul(one.len()));
                let bytes = fit_rows(tensor.bytes(), rows, &one);
                Value::of_bytes(tensor.dtype(), wanted, bytes)?
            }
        };
        Ok(())
    }
}

/// Rows of one length as rows of another; what is missing is filled with `fill`, again and again.
fn fit_rows<T: Copy>(values: &[T], (from, to): (usize, usize), fill: &[T]) -> Vec<T> {
    if from == 0 {
        return Vec::new();
    }
    let rows = values.chunks(from);
    rows.flat_map(|row| {
        let kept = row.iter().copied().take(to);
        kept.chain(fill.iter().copied().cycle().take(to.saturating_sub(from)))
    })
    .collect()
}

fn transpose<T: Copy>(values: &[T], rows: usize, columns: usize) -> Vec<T> {
    debug_assert_eq!(values.len(), rows.saturating_mul(columns));
    (0..columns).flat_map(|column| values.iter().skip(column).step_by(columns.max(1)).copied()).collect()
}

/// The sizes that `wanted` stands for.
pub(super) fn resolve(wanted: &[i64], found: &[usize]) -> Result<Vec<usize>, String> {
    let total = element_count(found).unwrap_or(0);
    let known: Vec<usize> = wanted.iter().filter_map(|&dim| usize::try_from(dim).ok()).collect();
    let fail = || format!("a sample of shape {found:?} ({total} elements) cannot take the shape {wanted:?}");
    let product = element_count(&known).ok_or_else(fail)?;
    let open = total.checked_div(product).unwrap_or(0);
    let shape: Vec<usize> = wanted.iter().map(|&dim| usize::try_from(dim).unwrap_or(open)).collect();
    if element_count(&shape) == Some(total) { Ok(shape) } else { Err(fail()) }
}
