//! What makes a sparse tensor valid.

use optix_ir::{DType, Tensor};

/// Checks values and indices of a sparse tensor of shape `shape` against each other: int64 indices, one a
/// value, within the shape, ascending, none twice.
pub(super) fn check(values: &Tensor, indices: &Tensor, shape: &[usize]) -> Result<(), String> {
    let &[count] = values.shape() else {
        return Err(format!("its values have {} dimensions, not 1", values.rank()));
    };
    if indices.dtype() != DType::I64 {
        return Err(format!("its indices are {}, not int64", indices.dtype()));
    }
    let total = optix_ir::element_count(shape).ok_or("its shape has more elements than can be addressed")?;
    let numbers = indices.to_i64s().map_err(|error| error.to_string())?;
    let linear: Vec<usize> = match indices.shape() {
        &[n] if n == count => {
            let place = |&index: &i64| usize::try_from(index).ok().filter(|&index| index < total);
            numbers.iter().map(place).collect::<Option<_>>().ok_or("an index lies outside its shape")?
        }
        &[n, rank] if n == count && rank == shape.len() && rank > 0 => {
            let place = |row: &[i64]| {
                row.iter().zip(shape).try_fold(0usize, |place, (&index, &size)| {
                    let index = usize::try_from(index).ok().filter(|&index| index < size)?;
                    place.checked_mul(size)?.checked_add(index)
                })
            };
            numbers.chunks(rank).map(place).collect::<Option<_>>().ok_or("an index lies outside its shape")?
        }
        other => return Err(format!("its indices have the shape {other:?} for {count} values")),
    };
    if linear.windows(2).any(|pair| matches!(pair, [a, b] if a >= b)) {
        return Err("its indices are not in ascending order, or one is there twice".into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indices_are_checked() {
        let values = Tensor::from_vec(vec![2], vec![1f32, 2.0]);
        let linear = |a, b| Tensor::from_i64s(&[a, b]);
        assert!(check(&values, &linear(0, 5), &[2, 3]).is_ok());
        for (a, b) in [(0, 6), (-1, 2), (3, 3), (4, 2)] {
            assert!(check(&values, &linear(a, b), &[2, 3]).is_err(), "{a} {b}");
        }
        let pairs = Tensor::from_vec(vec![2, 2], vec![0i64, 2, 1, 0]);
        assert!(check(&values, &pairs, &[2, 3]).is_ok());
        assert!(check(&values, &pairs, &[2, 2]).is_err());
        assert!(check(&values, &Tensor::from_vec(vec![2], vec![0i32, 1]), &[2]).is_err());
        assert!(check(&values, &linear(0, 1), &[usize::MAX, 2]).is_err());
    }
}
