"""Migration: sessions move from one store to another while they live, with no two writers at any instant, and back."""
