"""What each scale inside a Res2Net block carries: statistics of its splits, beside a ResNet's channels cut alike."""
